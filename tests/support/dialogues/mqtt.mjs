// An MQTT broker over WebSocket; prints its port.
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(`${process.env.WSPOOL_NPM}/node_modules/`);
const { Aedes } = await import(pathToFileURL(require.resolve("aedes")));
const { WebSocketServer, createWebSocketStream } = require("ws");

const broker = await Aedes.createBroker();
const http = createServer();
const server = new WebSocketServer({ server: http, handleProtocols: () => "mqtt" });
server.on("connection", (socket, request) => {
  const stream = createWebSocketStream(socket);
  stream.on("error", () => {});
  broker.handle(stream, request);
});
http.listen(0, "127.0.0.1", () => console.log(http.address().port));
