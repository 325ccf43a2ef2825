// The search runs in a worker, which no browser starts from file://. There it runs in a hidden frame instead
// (named in mkdocs.yml, so that the theme's offline plugin does not ask a CDN for the same).
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow;
      const load = (source) =>
        new Promise((resolve) => {
          const script = inside.document.createElement("script");
          script.src = source;
          script.onload = resolve;
          inside.document.head.append(script);
        });
      inside.__index = window.__index; // the index, which the page has loaded as a script
      inside.importScripts = (...sources) => sources.reduce((done, source) => done.then(() => load(source)), Promise.resolve());
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const ready = load(url);
      this.postMessage = (data) => ready.then(() => inside.dispatchEvent(new inside.MessageEvent("message", { data })));
    }
  };
}
