// Which turns belong to which version of a message? A question that was edited and an answer that
// was given anew have versions; each keeps the turns that followed it while another is shown.

/** A message's versions: its answers, or the words of an edited question. */
export function versionsOf(message) {
  return (message.role === "user" ? message.versions : message.answers) ?? [];
}

/** The turns behind a message go to the version of it that is shown. */
export function putAside(conversation, at) {
  const message = conversation.messages[at];
  const version = versionsOf(message)[message.shown];
  if (version !== undefined) {
    version.later = conversation.messages.splice(at + 1);
  }
}

/** One more version of an edited question; it is shown, and nothing follows it yet. */
export function addWords(conversation, at, text) {
  const message = conversation.messages[at];
  const { files } = message;
  if (versionsOf(message).length === 0) {
    message.versions = [{ text: message.text, files }];
    message.shown = 0;
  }
  putAside(conversation, at);
  message.versions.push({ text, files });
  message.shown = message.versions.length - 1;
  message.text = text;
}

/** Shows the version before or behind, with the turns that followed it. */
export function stepTo(conversation, at, step) {
  const message = conversation.messages[at];
  const versions = versionsOf(message);
  const next = Math.min(Math.max(message.shown + step, 0), versions.length - 1);
  putAside(conversation, at);
  message.shown = next;
  const { text, files, later = [] } = versions[next];
  if (message.role === "user") {
    Object.assign(message, { text, files });
  }
  versions[next].later = [];
  conversation.messages.push(...later);
}
