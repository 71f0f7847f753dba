// What bench/compare.py compares pyasync with, on Node. See peer.py for the command line.
"use strict";
const dgram = require("dgram");
const fs = require("fs");
const net = require("net");
const { performance } = require("perf_hooks");
const { isMainThread, Worker, workerData } = require("worker_threads");

const HOST = "127.0.0.1";
const RESPONSE = Buffer.from(
  "HTTP/1.1 200 OK\r\n" +
    "Date: Wed, 03 Oct 2012 23:43:10 GMT\r\n" +
    "Content-Type: text/plain\r\n" +
    "Content-Length: 9\r\n" +
    "\r\n" +
    "omglolwtf"
);

function cpuSeconds() {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
}

function privateBytes() {
  global.gc(); // node --expose-gc
  const lines = fs.readFileSync("/proc/self/smaps_rollup", "utf8").split("\n");
  return lines
    .filter((line) => line.startsWith("Private_"))
    .reduce((sum, line) => sum + parseInt(line.split(/\s+/)[1]) * 1024, 0);
}

function result(figures) {
  fs.writeSync(1, JSON.stringify(figures) + "\n");
  process.exit(0);
}

function serve(onConnection) {
  const server = net.createServer({ noDelay: true }, (socket) => {
    socket.on("error", (error) => {
      // A client that ends while an answer is on its way resets the connection.
      if (error.code !== "ECONNRESET" && error.code !== "EPIPE") throw error;
    });
    onConnection(socket);
  });
  server.listen({ host: HOST, port: 0, backlog: 4096 }, () => {
    fs.writeSync(1, `listening on ${HOST}:${server.address().port}\n`);
  });
}

// Counts what is done for some seconds, and its CPU time.
class Pace {
  constructor(seconds) {
    this.count = 0;
    this.milliseconds = seconds * 1000;
    this.began = performance.now();
    this.cpu = cpuSeconds();
  }

  oneMore() {
    this.count++;
    return performance.now() - this.began < this.milliseconds;
  }

  result() {
    const seconds = (performance.now() - this.began) / 1000;
    result({
      per_second: this.count / seconds,
      cpu_seconds: (cpuSeconds() - this.cpu) / this.count,
    });
  }
}

const kinds = {
  http(delay) {
    const respond = (socket) => {
      if (!socket.destroyed) socket.end(RESPONSE);
    };
    serve((socket) => {
      socket.on("data", () => {
        if (delay > 0) setTimeout(respond, delay * 1000, socket);
        else respond(socket);
      });
    });
  },

  echo() {
    serve((socket) => socket.on("data", (data) => socket.write(data)));
  },

  accept() {
    serve((socket) => socket.destroy());
  },

  udp() {
    const socket = dgram.createSocket("udp4");
    socket.on("message", (data, sender) => {
      socket.send(data, sender.port, sender.address);
    });
    socket.bind(0, HOST, () => {
      fs.writeSync(1, `listening on ${HOST}:${socket.address().port}\n`);
    });
  },

  timers(mode, count, spread) {
    count = Number(count);
    const first = mode === "pending" ? 3600e3 : 0;
    let fired = 0;
    const onTimer = () => {
      if (++fired === count) end();
    };
    const timers = new Array(count).fill(null);
    const before = privateBytes();
    const began = cpuSeconds();
    const end = () => result({ cpu_seconds: (cpuSeconds() - began) / count });
    for (let i = 0; i < count; i++) {
      timers[i] = setTimeout(onTimer, first + (spread * 1000 * i) / count);
    }
    if (mode === "pending") {
      result({ bytes: (privateBytes() - before) / count });
    } else if (mode === "cancel") {
      timers.forEach(clearTimeout);
      setImmediate(end);
    }
  },

  connect(port, connections, seconds) {
    const pace = new Pace(seconds);
    const start = () => {
      const socket = net.connect(port, HOST);
      socket.resume();
      socket.on("close", () => {
        if (pace.oneMore()) start();
        else pace.result();
      });
    };
    for (let i = 0; i < connections; i++) start();
  },

  wakeups(seconds) {
    const answers = new Int32Array(new SharedArrayBuffer(4));
    const worker = new Worker(__filename, { workerData: answers });
    let pace = null; // begins when the thread has
    worker.on("message", () => {
      if (pace === null) pace = new Pace(seconds);
      else if (!pace.oneMore()) pace.result();
      Atomics.add(answers, 0, 1);
      Atomics.notify(answers, 0);
    });
  },
};

if (isMainThread) {
  const [kind, ...words] = process.argv.slice(2);
  if (!(kind in kinds) || words.includes("--busy")) process.exit(3); // it cannot do this
  kinds[kind](...words);
} else {
  const { parentPort } = require("worker_threads");
  for (let sent = 0; ; sent++) {
    parentPort.postMessage(null);
    Atomics.wait(workerData, 0, sent);
  }
}
