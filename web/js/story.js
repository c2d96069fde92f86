// Translates the notes and titles of nodes in the example workflows, which are called stories. They contain the English text, and
// its key in `properties.flowcore_words`. Text that a person has changed stays.
import { language, loadedTexts, texts } from "./canvas.js";
import { app } from "./frontend.js";

app.registerExtension({
  name: "flowcore.story",
  setup: () => texts, // before a workflow is opened
  loadedGraphNode(node) {
    const key = node.properties?.flowcore_words;
    if (typeof key !== "string") return;
    const isNote = node.type === "MarkdownNote", text = isNote && node.widgets?.[0];
    node.title = inOurLanguage(isNote ? "note" : key, node.title);
    if (text) text.value = inOurLanguage(key, text.value);
  },
});

/** The text of a key in the language of the frontend, or in English, in place of that in any language; another text stays. */
function inOurLanguage(key, text) {
  const textIn = (name) => loadedTexts[name]?.flowcore?.stories?.[key];
  return Object.keys(loadedTexts).some((name) => textIn(name) === text) ? textIn(language()) ?? textIn("en") : text;
}
