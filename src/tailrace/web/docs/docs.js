// Shows openapi.json. Everything is made with textContent: nothing in the document is taken for markup.

const METHODS = ["get", "post", "put", "delete"];

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

const code = (text) => element("code", { textContent: text });
const block = (value) =>
  element("pre", { textContent: typeof value === "string" ? value : JSON.stringify(value, null, 2) });

// Text in which `…` is code.
const prose = (text = "") => text.split("`").map((part, index) => (index % 2 ? code(part) : part));

function typeOf(schema = {}) {
  if (schema.enum) return schema.enum.join(" | ");
  const type = [schema.type ?? "any"].flat().join(" | ");
  const range = schema.minimum !== undefined || schema.maximum !== undefined;
  return range ? `${type} ${schema.minimum ?? ""}–${schema.maximum ?? ""}` : type;
}

function parameters(list) {
  if (!list.length) return null;
  const rows = list.map((each) =>
    element(
      "tr",
      {},
      element("td", {}, code(each.name)),
      element("td", { className: "note", textContent: each.in }),
      element("td", { textContent: typeOf(each.schema) }),
      element("td", {}, ...prose(each.description)),
    ),
  );
  return element("section", {}, element("h4", { textContent: "Parameters" }), element("table", {}, ...rows));
}

function examplesOf(content) {
  if (content.example !== undefined) return [["", content.example]];
  return Object.entries(content.examples ?? {}).map(([name, { value }]) => [name, value]);
}

function contents(title, content) {
  const parts = [];
  for (const [type, each] of Object.entries(content ?? {})) {
    for (const [name, value] of examplesOf(each)) {
      parts.push(element("p", { className: "note", textContent: name ? `${type} — ${name}` : type }), block(value));
    }
  }
  return parts.length ? element("section", {}, title ? element("h4", { textContent: title }) : null, ...parts) : null;
}

function responses(map) {
  const made = Object.entries(map).map(([status, each]) =>
    element(
      "details",
      {},
      element(
        "summary",
        {},
        element("span", { className: status >= "400" ? "bad" : "", textContent: `${status} ` }),
        ...prose(each.description),
      ),
      element("div", {}, contents("", each.content)),
    ),
  );
  return element("section", {}, element("h4", { textContent: "Answers" }), ...made);
}

function curl(method, path, operation) {
  const address = location.origin + path.replace("{stream}", "run:42");
  const parts = ["curl"];
  if (path.endsWith("/stream")) parts.push("-N");
  if (method !== "get") parts.push("-X", method.toUpperCase());
  if (operation.security?.length !== 0) parts.push('-H "Authorization: Bearer $TOKEN"');
  const json = operation.requestBody?.content?.["application/json"];
  if (json) {
    parts.push('-H "Content-Type: application/json"', `-d '${JSON.stringify(examplesOf(json)[0]?.[1] ?? {})}'`);
  }
  return [...parts, `'${address}'`].join(" ");
}

function operation(path, method, described, shared) {
  return element(
    "details",
    { className: "operation", id: `${method}${path}` },
    element(
      "summary",
      {},
      element("span", { className: `method ${method}`, textContent: method.toUpperCase() }),
      element("span", { className: "path", textContent: path }),
      element("span", { className: "note", textContent: described.summary ?? "" }),
    ),
    element(
      "div",
      {},
      element("p", {}, ...prose(described.description)),
      block(curl(method, path, described)),
      parameters([...(shared ?? []), ...(described.parameters ?? [])]),
      contents("Body", described.requestBody?.content),
      responses(described.responses ?? {}),
    ),
  );
}

function show(api) {
  document.getElementById("about").textContent = `${api.info.summary ?? ""} Version ${api.info.version}.`;
  const main = document.getElementById("operations");
  const nav = document.getElementById("contents");
  for (const tag of api.tags ?? []) {
    nav.append(element("a", { href: `#${tag.name}`, textContent: tag.name }));
    main.append(
      element("h2", { id: tag.name, textContent: tag.name }),
      element("p", { className: "note", textContent: tag.description ?? "" }),
    );
    for (const [path, item] of Object.entries(api.paths)) {
      for (const method of METHODS) {
        if (item[method]?.tags?.includes(tag.name)) main.append(operation(path, method, item[method], item.parameters));
      }
    }
  }
  const sought = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (sought?.tagName === "DETAILS") sought.open = true;
  sought?.scrollIntoView();
}

document.getElementById("filter").addEventListener("input", (event) => {
  const word = event.target.value.trim().toLowerCase();
  for (const each of document.querySelectorAll(".operation")) {
    each.hidden = word !== "" && !each.textContent.toLowerCase().includes(word);
  }
});

try {
  const answer = await fetch("openapi.json");
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  show(await answer.json());
} catch (error) {
  document.getElementById("about").textContent = `openapi.json could not be read: ${error.message}`;
}
