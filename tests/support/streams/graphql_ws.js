// Endless subscriptions; a query says how many operations were under way at most on a connection.
const { GraphQLInt, GraphQLObjectType, GraphQLSchema } = require("graphql");
const { useServer } = require("graphql-ws/use/ws");
const { WebSocketServer } = require("ws");

let most = 0;

async function* ticks() {
  for (let n = 0; ; n += 1) {
    yield { ticks: n };
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

const query = new GraphQLObjectType({
  name: "Query",
  fields: { most: { type: GraphQLInt, resolve: () => most } },
});
const subscription = new GraphQLObjectType({
  name: "Subscription",
  fields: { ticks: { type: GraphQLInt, subscribe: ticks } },
});
const server = new WebSocketServer({ port: 0, host: "127.0.0.1" });
server.on("listening", () => console.log(server.address().port));
useServer(
  {
    schema: new GraphQLSchema({ query, subscription }),
    onSubscribe: ({ subscriptions }) => {
      most = Math.max(most, Object.keys(subscriptions).length);
    },
  },
  server,
);
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
