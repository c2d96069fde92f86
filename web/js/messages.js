// Translates what nodes say of their runs: the server sends templates with their values, as `translatable` in nodes/host/ui.py
// makes them. Translations are found by the English template.
import { language, loadedTexts } from "./canvas.js";

/** Put a message of a node into the language of the frontend, with the labels of the node's inputs; a plain text stays as it is. */
export function translateMessage(message, node) {
  const text = fill(message, node?.comfyClass);
  return language() === "ar" ? text.replace(/^(?!\u200f)(?=.*\p{Script=Arabic})/gmu, "\u200f") : text; // a line may begin with a Latin name
}

function fill(message, kind) {
  if (Array.isArray(message)) return new Intl.ListFormat(language()).format(message.map((part) => fill(part, kind)));
  if (message.argument) return labelOf(message.argument, kind);
  if (!message.template) return message;
  const { template, values } = message, translation = loadedTexts[language()]?.flowcore?.messages?.[template];
  return (translation ?? template).replace(/\{(\w+)\}/g, (_, name) => {
    const { argument } = values[name], filled = fill(values[name], kind);
    return translation || !argument || filled === argument ? filled : `“${filled}”`; // translations have quotation marks of their own
  });
}

/** The label of an argument's input, in the language of the frontend if the node is translated. */
function labelOf(argument, kind) {
  const labels = [language(), "en"].map((name) => loadedTexts[name]?.nodeDefs?.[kind]?.inputs[argument]?.name);
  return labels.find(Boolean) ?? argument;
}
