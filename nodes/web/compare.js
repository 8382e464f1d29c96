/**
 * Draws before and after on the canvas, in the Image Compare nodes of this pack's templates.
 *
 * The frontend's own slider is drawn by its Vue nodes alone. Nodes are told by a property that the
 * templates give them; other Image Compare nodes stay as they are.
 */
import { app } from "../../scripts/app.js";

const MARGIN = 10; // px
const TOP = 60; // px: of the picture, under the slots

app.registerExtension({
  name: "pfstorer.compare",

  nodeCreated(node) {
    const widget = node.widgets?.find((widget) => widget.type === "imagecompare");
    if (node.comfyClass !== "ImageCompare" || !widget) return;
    const drawn = () => node.properties?.pfstorer_template && !LiteGraph.vueNodesMode;
    Object.defineProperty(widget, "hidden", { get: () => !!drawn(), set() {} });
    const images = new Map(); // by address
    let split = 0.5; // share of the width that shows before

    const { onDrawForeground, onMouseMove } = node;
    node.onDrawForeground = function (context, ...others) {
      onDrawForeground?.call(this, context, ...others);
      if (!drawn() || this.flags.collapsed) return;
      const urls = [widget.value?.beforeImages?.[0], widget.value?.afterImages?.[0]];
      for (const url of images.keys()) if (!urls.includes(url)) images.delete(url);
      const [before, after] = urls.map((url) => url && imageOf(url, images));
      if (before?.naturalWidth && after?.naturalWidth)
        draw(context, before, after, placeOf(after, this.size), split);
    };
    node.onMouseMove = function (event, position, ...others) {
      onMouseMove?.call(this, event, position, ...others);
      if (!drawn()) return;
      const [after] = [...images.values()].slice(-1);
      if (!after?.naturalWidth) return;
      const { x, width } = placeOf(after, this.size);
      split = Math.min(1, Math.max(0, (position[0] - x) / width));
      this.setDirtyCanvas(true);
    };
  },
});

/** Returns the picture of an address, which may have yet to arrive. */
function imageOf(url, images) {
  if (!images.has(url)) {
    const image = new Image();
    image.onload = () => app.graph.setDirtyCanvas(true);
    image.src = url;
    images.set(url, image);
  }
  return images.get(url);
}

/** Returns the largest place of the picture's shape in a node. */
function placeOf(image, [width, height]) {
  const room = [width - 2 * MARGIN, Math.max(1, height - TOP - MARGIN)];
  const scale = Math.min(room[0] / image.naturalWidth, room[1] / image.naturalHeight);
  const size = [image.naturalWidth * scale, image.naturalHeight * scale];
  const [x, y] = [MARGIN + (room[0] - size[0]) / 2, TOP + (room[1] - size[1]) / 2];
  return { x, y, width: size[0], height: size[1] };
}

function draw(context, before, after, { x, y, width, height }, split) {
  context.save();
  context.drawImage(after, x, y, width, height);
  context.beginPath();
  context.rect(x, y, width * split, height);
  context.clip();
  context.drawImage(before, x, y, width, height);
  context.restore();
  context.fillStyle = "#fff";
  context.fillRect(x + width * split - 1, y, 2, height);
}
