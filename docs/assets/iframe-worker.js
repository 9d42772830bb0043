// Makes the search work if the site is opened as a file (an address that begins with `file:`). From
// such an address, browsers start no worker. The worker's script runs in a hidden frame instead.
// Its messages are copied and arrive later, as with a real worker.
"use strict";

if (location.protocol === "file:") {
  window.Worker = class {
    constructor(address) {
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.documentElement.append(this.frame);
      const inside = this.frame.contentWindow;
      inside.postMessage = (data) => {
        const copy = structuredClone(data);
        setTimeout(() => this.onmessage?.({ data: copy }));
      };
      const script = inside.document.createElement("script");
      this.ready = new Promise((resolve, reject) => {
        script.onload = resolve;
        script.onerror = reject;
      });
      this.ready.catch(() => this.onerror?.(new Event("error", { cancelable: true })));
      script.src = new URL(address, location.href).href;
      inside.document.documentElement.append(script);
    }

    postMessage(data) {
      const copy = structuredClone(data);
      this.ready.then(
        () => setTimeout(() => this.frame.contentWindow?.onmessage?.({ data: copy })),
        () => {},
      );
    }

    terminate() {
      this.frame.remove();
    }
  };
}
