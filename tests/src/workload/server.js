// An HTTP server under Node.js: connections that stay, timers, a worker thread, and objects that come and go.
'use strict';
const http = require('http');
const { Worker, isMainThread, parentPort } = require('worker_threads');

if (!isMainThread) {
  // Sums what it is given, in a heap of its own.
  parentPort.on('message', (numbers) => parentPort.postMessage(numbers.reduce((sum, n) => sum + n, 0)));
} else {
  const words = 16384;
  const content = Buffer.alloc(words * 4);
  for (let n = 0; n < words; n++) content.writeUInt32LE(Math.imul(n, 2654435761) >>> 0, n * 4);

  const known = new Map();
  for (let n = 0; n < 20000; n++) known.set(`key-${n}`, { n, square: n * n });
  let wrong = null;
  let ticks = 0;
  setInterval(() => {
    ticks += 1;
    for (let n = ticks % 7; n < 20000; n += 7) {
      const found = known.get(`key-${n}`);
      if (!found || found.n !== n || found.square !== n * n) wrong = `key-${n} is ${JSON.stringify(found)}`;
      known.set(`key-${n}`, { n, square: n * n });
    }
  }, 10);

  const worker = new Worker(__filename);
  let asked = 0;
  const ask = () => worker.postMessage(Array.from({ length: 1000 }, (_, n) => n + asked));
  worker.on('message', (sum) => {
    if (sum !== 499500 + 1000 * asked) wrong = `the worker says ${sum} to ${asked}`;
    asked += 1;
    setTimeout(ask, 5);
  });
  worker.on('error', (error) => { wrong = `the worker failed: ${error}`; });
  ask();

  const server = http.createServer((request, response) => {
    if (wrong) {
      response.writeHead(500);
      response.end(wrong);
      return;
    }
    if (request.url === '/progress') {
      response.end(`${ticks} ${asked}\n`);
      return;
    }
    response.writeHead(200, { 'Content-Length': content.length });
    response.end(content);
  });
  server.keepAliveTimeout = 120000;
  server.listen(8080, '0.0.0.0');
}
