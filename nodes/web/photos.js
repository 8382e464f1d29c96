/**
 * Has a run refused at once where a photo of a template is not chosen yet.
 *
 * ComfyUI takes an empty name for a file and fails when Load Image opens it, after a training
 * perhaps. So the prompt gets a name that no file has: ComfyUI refuses it before anything runs,
 * marks the node and says that name. On the page the choice stays empty.
 */
import { app } from "../../scripts/app.js";

const NONE = "no photo is chosen yet";

app.registerExtension({
  name: "pfstorer.photos",

  nodeCreated(node) {
    const widget = node.widgets?.find((widget) => widget.name === "image");
    if (node.comfyClass !== "LoadImage" || !widget || widget.serializeValue) return;
    widget.serializeValue = () =>
      widget.value === "" && node.properties?.pfstorer_template ? NONE : widget.value;
  },
});
