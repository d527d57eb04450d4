// Filters the home page's table. Without this file the table stands as it is.
(function () {
  "use strict";

  const FACETS = [
    ["section", "Kind of work", { pruning: "pruning", complementary: "combines with pruning" }],
    ["architectures", "Network"],
    ["tasks", "Task"],
    ["granularity", "Machine", {
      structured: "any: tensors shrink",
      "semi-structured": "runs n:m patterns",
      unstructured: "has a sparse runtime",
      dynamic: "own sampling loop",
    }],
    ["stage", "Budget", {
      "training-free": "no training",
      "post-training": "fine-tune or distil",
      "during-training": "while training",
      "from-scratch": "training from scratch",
      "dynamic-inference": "decided while sampling",
    }],
    ["code", "Code", {
      released: "released", partial: "partial", "weights-only": "weights only",
    }],
    ["runs", "Runs here", { yes: "yes" }],
  ];

  function element(tag, properties, children) {
    const made = Object.assign(document.createElement(tag), properties);
    (children || []).forEach((child) => made.append(child));
    return made;
  }

  function start(box) {
    const rows = Array.from(box.querySelectorAll("tbody tr"));
    const controls = box.querySelector(".chooser-controls");
    const count = box.querySelector(".chooser-count");
    const inputs = {};
    const models = element("datalist", { id: "chooser-models" });
    box.dataset.models.split("|").filter(Boolean).forEach((name) => {
      models.append(element("option", { value: name }));
    });
    const text = element("input", { type: "search", placeholder: "SDXL, FLUX, a title, an author …" });
    text.setAttribute("list", "chooser-models");
    inputs.text = text;
    controls.append(element("label", { className: "wide" }, ["My model, or any word", text]), models);

    FACETS.forEach(([name, label, words]) => {
      const present = new Set(rows.flatMap((row) => row.dataset[name].split(" ")).filter(Boolean));
      const values = words ? Object.keys(words).filter((v) => present.has(v)) : Array.from(present).sort();
      if (values.length < (name === "runs" || name === "code" ? 1 : 2)) return;
      const select = element("select", {}, [element("option", { value: "", textContent: "any" })]);
      values.forEach((value) => {
        select.append(element("option", { value, textContent: words ? words[value] : value.replace(/-/g, " ") }));
      });
      inputs[name] = select;
      controls.append(element("label", {}, [label, select]));
    });
    const reset = element("button", { type: "button", textContent: "Show all" });
    controls.append(reset);

    // "text" is a search over what the row shows and its hidden words.
    const haystacks = rows.map((row) => (row.dataset.text + " " + row.textContent).toLowerCase());

    function apply() {
      const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, index) => {
        const fits = words.every((word) => haystacks[index].includes(word)) &&
          FACETS.every(([name]) => !inputs[name] || !inputs[name].value ||
            row.dataset[name].split(" ").includes(inputs[name].value));
        row.hidden = !fits;
        shown += fits;
      });
      count.textContent = shown === rows.length ? `All ${shown} works.` : `${shown} of ${rows.length} works fit.`;
      const state = new URLSearchParams();
      Object.entries(inputs).forEach(([name, input]) => { if (input.value) state.set(name, input.value); });
      const hash = state.toString();
      history.replaceState(null, "", hash ? "#" + hash : location.pathname + location.search);
    }

    new URLSearchParams(location.hash.slice(1)).forEach((value, name) => {
      if (Object.hasOwn(inputs, name)) inputs[name].value = value;
    });
    controls.addEventListener("input", apply);
    reset.addEventListener("click", () => {
      Object.values(inputs).forEach((input) => { input.value = ""; });
      apply();
      text.focus();
    });
    box.querySelector(".chooser-plain").hidden = true;
    controls.hidden = false;
    count.hidden = false;
    apply();
  }

  document.querySelectorAll(".chooser").forEach(start);
})();
