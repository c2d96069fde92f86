// Translates what nodes say of their runs, which the server sends in English. The texts are templates with {0}, {1} and so on.
import { language, loadedTexts } from "./canvas.js";

const templatesByLanguage = new Map();

/** Translate the lines of a text of a node that are known into the language of the frontend, with the names of the node's inputs. */
export const translateMessage = (text, node) => text.split("\n").map((line) => {
  const translated = translateLine(line, node?.comfyClass);
  return translated !== line && language() === "ar" ? `\u200f${translated}` : translated; // even if it begins with a name in Latin letters
}).join("\n");

function translateLine(line, kind) {
  for (const { pattern, translated } of templates()) {
    const [matched, ...values] = line.match(pattern) ?? [];
    if (matched !== undefined) return translated.replace(/\{(\d)\}/g, (_, number) => translateValue(values[number], kind));
  }
  const [, name, said] = line.match(/^(.+?): (.+)$/) ?? []; // such as the file that a note is about
  return said ? `${translateValue(name, kind)}: ${translateLine(said, kind)}` : inputName(line, kind);
}

/** What stands in a template may be a list, such as of kinds of damage. */
function translateValue(value, kind) {
  const parts = value.split(", "), areKnown = parts.every((part) => templates().some(({ pattern }) => pattern.test(part)));
  return areKnown ? new Intl.ListFormat(language()).format(parts.map((part) => translateLine(part, kind))) : translateLine(value, kind);
}

const inputName = (name, kind) => loadedTexts[language()]?.nodeDefs?.[kind]?.inputs[name]?.name ?? name;

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

/** Match a text; with one word, as in "seed {0}", only if the value is a number, because other lines begin or end with that word, too. */
function toPattern(text) {
  const value = /^(\w+ )?\{0\}( \w+)?$/.test(text) ? "([\\d.]+)" : "(.*?)";
  return new RegExp(`^${text.replace(/[.*+?^$()|[\]\\/]/g, "\\$&").replace(/\{\d\}/g, value)}$`);
}
