// The words of the stories in the language of the frontend: notes, and the titles of nodes that are alike. A story holds
// them in English, with the key of each in `properties.flowcore_words`; what a person has changed stays as it is.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

let served = {};

app.registerExtension({
  name: "flowcore.story",
  async setup() {
    served = (await Promise.resolve(api.getCustomNodesI18n?.()).catch(() => ({}))) ?? {};
  },
  loadedGraphNode(node) {
    const key = node.properties?.flowcore_words;
    if (typeof key !== "string") return;
    const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
    const [english, there] = ["en", language].map((name) => served[name]?.flowcore?.stories);
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
