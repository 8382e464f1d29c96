/** Shows what a node of this pack refuses as the sentence that it says, beside the frontend's mark. */
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

app.registerExtension({
  name: "pfstorer.errors",

  setup() {
    api.addEventListener("execution_error", ({ detail }) => {
      if (!detail?.exception_type?.endsWith("PFStorerError")) return;
      const node = app.graph?.getNodeById?.(detail.node_id);
      app.extensionManager?.toast?.add({
        severity: "error",
        summary: node?.title ?? detail.node_type,
        detail: detail.exception_message.trim(),
      });
    });
  },
});
