// Translates what nodes say of their runs, which the server sends in English. The texts are templates with {0}, {1} and so on.
import { language, loadedTexts } from "./canvas.js";

const templatesByLanguage = new Map();

/** Translate the lines of a text that are known into the language of the frontend. */
export const translateMessage = (text) => text.split("\n").map(translateLine).join("\n");

function translateLine(line) {
  for (const { pattern, translated } of templates()) {
    const [matched, ...values] = line.match(pattern) ?? [];
    if (matched !== undefined) return translated.replace(/\{(\d)\}/g, (_, number) => translateValue(values[number]));
  }
  const [, name, said] = line.match(/^(.+?: )(.+)$/) ?? []; // such as the file that a note is about
  return said ? name + translateLine(said) : line;
}

/** What stands in a template may be a list, such as of kinds of damage. */
function translateValue(value) {
  const parts = value.split(", "), areKnown = parts.every((part) => templates().some(({ pattern }) => pattern.test(part)));
  return areKnown ? new Intl.ListFormat(language()).format(parts.map(translateLine)) : translateLine(value);
}

/** The templates that have a translation, the longest first. */
function templates() {
  const name = language(), translations = name === "en" ? undefined : loadedTexts[name]?.flowcore?.messages;
  if (!translations) return [];
  if (!templatesByLanguage.has(name)) {
    const english = Object.entries(loadedTexts.en?.flowcore?.messages ?? {}).filter(([key]) => translations[key]);
    english.sort(([, one], [, other]) => other.length - one.length);
    templatesByLanguage.set(name, english.map(([key, text]) => ({ pattern: toPattern(text), translated: translations[key] })));
  }
  return templatesByLanguage.get(name);
}

const toPattern = (text) => new RegExp(`^${text.replace(/[.*+?^$()|[\]\\/]/g, "\\$&").replace(/\{\d\}/g, "(.*?)")}$`);
