const ganache = require("ganache");

const server = ganache.server({ logging: { quiet: true } });
server.listen(0, "127.0.0.1").then(() => console.log(server.address().port));
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
