// The words of the stories in the language of the frontend: notes, and the titles of nodes that are alike. A story holds
// them in English, with the key of each in `properties.flowcore_words`; what a person has changed stays as it is.
import { app } from "../../../scripts/app.js";
import { language, texts } from "./canvas.js";

let every = {};

app.registerExtension({
  name: "flowcore.story",
  async setup() {
    every = await texts;
  },
  loadedGraphNode(node) {
    const key = node.properties?.flowcore_words;
    if (typeof key !== "string") return;
    const [english, there] = ["en", language()].map((name) => every[name]?.flowcore?.stories);
    if (!english || !there) return;
    if (node.type !== "MarkdownNote") {
      if (node.title === english[key]) node.title = there[key] ?? node.title;
      return;
    }
    if (node.title === english.note) node.title = there.note ?? node.title;
    const text = node.widgets?.[0];
    if (text?.value === english[key] && there[key]) text.value = there[key];
  },
});
