// Lets the search work if the site is opened as a file: browsers start no worker from file: addresses.
// The script of the worker runs in a hidden frame instead, with the interface that the page expects.
"use strict";

if (location.protocol === "file:") {
  window.Worker = class {
    constructor(address) {
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.documentElement.append(this.frame);
      const inside = this.frame.contentWindow;
      inside.postMessage = (data) => queueMicrotask(() => this.onmessage?.({ data }));
      const script = inside.document.createElement("script");
      script.onload = () => {
        this.ready = true;
        for (const data of this.waiting.splice(0)) inside.onmessage?.({ data });
      };
      script.onerror = () => this.onerror?.(new Event("error"));
      script.src = new URL(address, location.href).href;
      inside.document.documentElement.append(script);
    }

    postMessage(data) {
      if (this.ready) this.frame.contentWindow?.onmessage?.({ data });
      else this.waiting.push(data);
    }

    terminate() {
      this.frame.remove();
    }
  };
}
