// Translates what nodes say of their runs, which the server sends in English. The texts are templates with {0}, {1} and so on.
import { language, loadedTexts } from "./canvas.js";

const templatesByLanguage = new Map();

/** Translate the lines of a text that are known into the language of the frontend. */
export const translateMessage = (text) => text.split("\n").map(translateLine).join("\n");

function translateLine(line) {
  for (const { pattern, translated } of templates()) {
    const [, ...values] = line.match(pattern) ?? [];
    if (values.length || pattern.test(line)) return translated.replace(/\{(\d)\}/g, (_, number) => translateLine(values[number]));
  }
  const [, name, said] = line.match(/^(.+?: )(.+)$/) ?? []; // such as the file that a note is about
  return said ? name + translateLine(said) : line;
}

/** The templates that have a translation, the longest first. */
function templates() {
  const own = language() === "en" ? undefined : loadedTexts[language()]?.flowcore?.messages;
  if (!own) return [];
  if (!templatesByLanguage.has(own)) {
    const english = Object.entries(loadedTexts.en?.flowcore?.messages ?? {}).filter(([key]) => own[key]);
    english.sort(([, one], [, other]) => other.length - one.length);
    templatesByLanguage.set(own, english.map(([key, text]) => ({ pattern: toPattern(text), translated: own[key] })));
  }
  return templatesByLanguage.get(own);
}

const toPattern = (text) => new RegExp(`^${text.replace(/[.*+?^$()|[\]\\/]/g, "\\$&").replace(/\{\d\}/g, "(.*?)")}$`);
