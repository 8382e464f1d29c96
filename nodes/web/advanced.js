/**
 * Hides advanced widgets on the canvas, and puts a button under the others that shows them.
 *
 * The frontend's Vue nodes do both themselves; on the canvas it marks no widget as advanced, and
 * leaves room for those that are marked and not shown, so they are hidden here as well. Order and
 * values of the widgets stay as they are, so that saved workflows, in which values go by position,
 * open as ever. The button is last and not saved.
 */
import { app } from "../../scripts/app.js";

const LABELS = { en: "Advanced settings", ja: "詳細設定", zh: "高级设置" };

app.registerExtension({
  name: "pfstorer.advanced",

  nodeCreated(node) {
    const advanced = (node.widgets ?? []).filter((widget) => widget.options?.advanced);
    if (!node.comfyClass?.startsWith("PFStorer") || !advanced.length) return;
    const defaults = new Map(advanced.map((widget) => [widget, widget.value]));
    for (const widget of advanced) {
      widget.advanced = true; // for the node's menu
      Object.defineProperty(widget, "hidden", { get: () => !node.showAdvanced, set() {} });
    }
    addButton(node);
    node.setSize([node.size[0], node.computeSize()[1]]);

    const onConfigure = node.onConfigure;
    node.onConfigure = function (saved) {
      onConfigure?.call(this, saved);
      // of before there was a choice: all that is not as it comes stays in view
      if (saved.showAdvanced === undefined) {
        const linked = new Set(this.inputs.filter((i) => i.link != null).map((i) => i.widget?.name));
        this.showAdvanced = advanced.some(
          (widget) => widget.value !== defaults.get(widget) || linked.has(widget.name)
        );
        if (!this.showAdvanced) this.setSize([this.size[0], this.computeSize()[1]]);
      }
    };
  },
});

function addButton(node) {
  const locale = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
  const options = { serialize: false, canvasOnly: true };
  const toggle = () => {
    node.toggleAdvanced();
    node.setSize([node.size[0], node.computeSize()[1]]);
  };
  const button = node.addWidget("button", "advanced_settings", null, toggle, options);
  button.label = LABELS[locale.split("-")[0]] ?? LABELS.en;
  button.serialize = false;
}
