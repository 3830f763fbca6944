// The publish box: one event into the stream that is being watched.

import { byId, setText } from "./dom.js";

const PLAIN_TEXT = "sent as text";
const AS_JSON = "sent as JSON";

export class Composer {
  #form = byId("composer");
  #type = byId("publish-type");
  #data = byId("publish-data");
  #answer = byId("publish-answer");
  #format = byId("publish-format");
  #publish;

  /** `publish(type, data)` resolves with the id, or rejects with a Problem. */
  constructor(publish) {
    this.#publish = publish;
    this.#data.addEventListener("input", () => this.#showFormat());
    this.#data.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#form.requestSubmit();
    });
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.#showFormat();
  }

  set enabled(value) {
    byId("publish-fields").disabled = !value;
  }

  async #send() {
    const { data } = read(this.#data.value);
    this.#answer.className = "answer";
    setText(this.#answer, "publishing…");
    try {
      const id = await this.#publish(this.#type.value.trim(), data);
      this.#say("good", `stored as ${id}`);
      this.#data.select();
    } catch (problem) {
      const code = problem.code ? `${problem.code}: ` : "";
      this.#say("bad", `${code}${problem.message}`);
    }
  }

  #say(tone, text) {
    this.#answer.className = `answer ${tone}`;
    setText(this.#answer, text);
  }

  #showFormat() {
    setText(this.#format, this.#data.value ? read(this.#data.value).format : "");
  }
}

/** JSON when it is JSON, else the text itself: what will be sent is always said. */
function read(text) {
  try {
    return { data: JSON.parse(text), format: AS_JSON };
  } catch {
    return { data: text, format: PLAIN_TEXT };
  }
}
