/* Starts the model in a Web Worker, sends it questions, and returns its answers. */

class Engine {
  constructor() {
    const code = byId("worker").textContent;
    const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
    this.worker = new Worker(address);
    this.waiting = new Map();
    this.count = 0;
    this.worker.onmessage = ({ data }) => this.hear(data);
    this.failed = new Promise((_, reject) => {
      this.worker.onerror = (event) =>
        reject(new Error(event.message || "the worker did not start"));
    });
  }

  /** The worker's answer to a question. `kind` is one of the questions in worker.js. `onPart` is
      called with each part that the worker sends before the answer. */
  ask(kind, question = {}, onPart = null) {
    const id = ++this.count;
    const answered = new Promise((resolve, reject) =>
      this.waiting.set(id, { resolve, reject, onPart }),
    );
    this.worker.postMessage({ id, kind, ...question });
    return Promise.race([answered, this.failed]);
  }

  hear({ id, part, answer, error }) {
    const { resolve, reject, onPart } = this.waiting.get(id);
    if (part !== undefined) {
      onPart?.(part);
      return;
    }
    this.waiting.delete(id);
    if (error === undefined) resolve(answer);
    else reject(new Error(error));
  }
}
