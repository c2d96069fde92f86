// Translates the notes and titles of nodes in the example workflows, which are called stories. They contain the English text, and
// its key in `properties.flowcore_words`. Text that a person has changed stays.
import { language, texts } from "./canvas.js";
import { app } from "./frontend.js";

let allTexts = {};

app.registerExtension({
  name: "flowcore.story",
  async setup() {
    allTexts = await texts;
  },
  loadedGraphNode(node) {
    const key = node.properties?.flowcore_words;
    if (typeof key !== "string") return;
    const [english, translated] = ["en", language()].map((name) => allTexts[name]?.flowcore?.stories);
    if (!english || !translated) return;
    if (node.type !== "MarkdownNote") {
      if (node.title === english[key]) node.title = translated[key] ?? node.title;
      return;
    }
    if (node.title === english.note) node.title = translated.note ?? node.title;
    const text = node.widgets?.[0];
    if (text?.value === english[key] && translated[key]) text.value = translated[key];
  },
});
