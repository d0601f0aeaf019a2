// A GraphQL server, with subscriptions over WebSocket; prints its port.
import { createRequire } from "node:module";

const require = createRequire(`${process.env.WSPOOL_NPM}/node_modules/`);
const { GraphQLObjectType, GraphQLSchema, GraphQLString, GraphQLInt } = require("graphql");
const { useServer } = require("graphql-ws/use/ws");
const { WebSocketServer } = require("ws");

const schema = new GraphQLSchema({
  query: new GraphQLObjectType({
    name: "Query",
    fields: {
      greet: {
        type: GraphQLString,
        args: { name: { type: GraphQLString } },
        resolve: (_, { name }) => `good day, ${name}`,
      },
    },
  }),
  subscription: new GraphQLObjectType({
    name: "Subscription",
    fields: {
      count: {
        type: GraphQLInt,
        args: { from: { type: GraphQLInt }, to: { type: GraphQLInt } },
        subscribe: async function* (_, { from, to }) {
          for (let count = from; count <= to; count++) yield { count };
        },
      },
    },
  }),
});

const server = new WebSocketServer({ port: 0, host: "127.0.0.1" }, () => {
  console.log(server.address().port);
});
useServer({ schema }, server);
