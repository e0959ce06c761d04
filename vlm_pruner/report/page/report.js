"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 24; // cards that are added at a time
  const at = id => document.getElementById(id);
  let run = data.runs[0], found = [], shown = 0;

  // Elements are made by name and text only: nothing of a result file is ever read as HTML.
  const make = (name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children.filter(child => child !== null && child !== undefined));
    return element;
  };
  const percent = share => (100 * share).toFixed(1);
  const bytes = n => n >= 1e9 ? (n / 1e9).toFixed(2) + " GB" : n >= 1e6 ? (n / 1e6).toFixed(2) + " MB" : (n / 1e3).toFixed(1) + " kB";
  const signed = value => (value >= 0 ? "+" : "−") + Math.abs(value).toFixed(1);
  const number = value => typeof value !== "number" ? String(value ?? "–")
    : Number.isInteger(value) ? value.toLocaleString("en") : String(+value.toPrecision(4));
  const table = (caption, head, rows) => { // without columns that no row fills
    const filled = head.map((_, i) => i === 0 || !rows.length || rows.some(row => row[i] !== "–" && row[i] !== ""));
    const line = (cells, cell) => make("tr", {}, ...cells.map(cell).filter((_, i) => filled[i]));
    const body = rows.map(row => line(row, (cell, i) => make(i ? "td" : "th", i ? {} : {scope: "row"}, cell)));
    const whole = make("table", {}, make("thead", {}, line(head, name => make("th", {scope: "col"}, name))), make("tbody", {}, ...body));
    return make("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": caption}, whole);
  };
  const interval = (e, change) => {
    if (!e) return "–";
    const f = change ? v => signed(100 * v) : percent;
    return make("span", {}, f(e.mean), make("span", {class: "interval"}, ` [${f(e.low)}, ${f(e.high)}]`));
  };
  const armOf = key => run.arms.find(arm => arm.key === key);
  const armName = arm => arm.label + (arm.settings && arm.budget ? `, ${arm.budget}` : "");
  const isDense = arm => arm.settings === null || arm.settings === undefined;

  const drawAccuracy = () => {
    const level = run.statistics ? Math.round(100 * run.statistics.level) : 95;
    at("accuracy-note").textContent = `In percent, mean over kinds of question, with ${level} % intervals; difference to dense in points, `
      + "paired by question. Coloured where it can be told apart from dense"
      + (run.statistics && run.statistics.holm ? " after Holm's correction for the number of comparisons." : "; some of many would be by chance alone.");
    at("accuracy-tables").replaceChildren(...run.benchmarks.flatMap(benchmark => {
      const kinds = Object.keys(benchmark.kinds || {});
      const rows = run.cells.filter(cell => cell.benchmark === benchmark.name).map(cell => {
        const arm = armOf(cell.arm), against = cell.against && cell.against.dense;
        const difference = against ? make("span", {class: against.verdict === "better" || against.verdict === "worse" ? against.verdict : "", title: against.verdict || ""}, interval(against, true)) : "–";
        return [armName(arm), number(arm.tokens), interval(cell.accuracy), difference, cell.loyalty ? percent(cell.loyalty.mean) : "–",
          ...kinds.map(kind => cell.kinds[kind] ? percent(cell.kinds[kind].mean) : "–")];
      });
      return [make("h3", {}, `${benchmark.name}: ${benchmark.n} questions about ${benchmark.pictures} pictures`),
        table(`Accuracy on ${benchmark.name}`, ["method", "tokens", "accuracy", "minus dense", "same answer as dense", ...kinds], rows)];
    }));
    at("verdict").replaceChildren(...(run.prune_or_resize || []).map(match => make("p", {}, match.verdict)));
    at("prune-or-resize").hidden = !(run.prune_or_resize || []).length;
    at("duel-tables").replaceChildren(...(run.prune_or_resize || []).map(match => table(`Prune or resize on ${match.benchmark}`,
      ["method", "against", "opponent", "difference in points", "verdict", "first token, ms"],
      match.duels.map(duel => { const cost = match.costs[duel.arm]; return [armName(armOf(duel.arm)), duel.kind, armName(armOf(duel.opponent)),
        interval(duel, true), duel.verdict, cost ? number(1000 * cost.first_token) : "–"]; }))));
    for (const left of run.not_run || [])
      at("accuracy-tables").append(make("p", {class: "note"}, `Not run: ${left.label || left.name}${left.budget ? ", " + left.budget : ""}: ${left.reason}`));
  };

  const drawCosts = () => {
    const rows = run.arms.filter(arm => arm.accounting).map(arm => {
      const a = arm.accounting;
      return [armName(arm), number(arm.tokens), number(+a.average_tokens.toFixed(1)), (a.prefill_flops / 1e9).toFixed(2), percent(a.flops_share), bytes(a.kv_bytes), percent(a.kv_share)];
    });
    at("cost-table").replaceChildren(table("Costs", ["method", "tokens at the end", "tokens, mean over layers", "prefill GFLOP", "% of dense", "KV cache", "% of dense"], rows));
  };

  // Filters

  const fill = (id, values, all) => {
    const select = at(id), before = select.value;
    const options = [...new Set(values)].map(value => make("option", {value}, value));
    select.replaceChildren(...(all ? [make("option", {value: ""}, all)] : []), ...options);
    if ([...select.options].some(option => option.value === before)) select.value = before;
  };
  const methodName = arm => arm.label || arm.name;
  const fillFilters = () => {
    const pruned = run.arms.filter(arm => !isDense(arm)), usable = pruned.length ? pruned : run.arms;
    fill("f-benchmark", run.benchmarks.map(b => b.name), "all");
    fill("f-method", usable.sort((a, b) => (b.name === "vlm-pruner") - (a.name === "vlm-pruner")).map(methodName));
    fillBudgets();
    fillKinds();
    at("ramp").style.background = `linear-gradient(90deg, ${data.ramp.join(",")})`;
  };
  const fillBudgets = () => fill("f-budget", run.arms.filter(arm => methodName(arm) === at("f-method").value).map(arm => arm.budget || String(arm.tokens)));
  const fillKinds = () => fill("f-kind", run.items.filter(i => !at("f-benchmark").value || i.b === at("f-benchmark").value).map(i => i.k), "all");
  const chosenArm = () => run.arms.findIndex(arm => methodName(arm) === at("f-method").value && (arm.budget || String(arm.tokens)) === at("f-budget").value);

  const keeps = {
    all: () => true, right: (d, p) => p[1], wrong: (d, p) => !p[1],
    changed: (d, p) => d && d[0].trim().toLowerCase() !== p[0].trim().toLowerCase(),
    lost: (d, p) => d && d[1] && !p[1], won: (d, p) => d && !d[1] && p[1],
  };
  const search = () => {
    const arm = chosenArm(), dense = run.arms.findIndex(isDense), words = at("f-words").value.trim().toLowerCase();
    const benchmark = at("f-benchmark").value, kind = at("f-kind").value, keep = keeps[at("f-show").value];
    found = run.items.filter(item => item.a[arm] && (!benchmark || item.b === benchmark) && (!kind || item.k === kind) && keep(item.a[dense], item.a[arm])
      && (!words || `${item.t} ${item.g} ${item.a[arm][0]}`.toLowerCase().includes(words)));
    shown = 0;
    at("cards").replaceChildren();
    const right = found.filter(item => item.a[arm][1]).length;
    at("count").textContent = `${found.length} of ${run.items.length} questions` + (found.length ? `, ${right} answered right by ${armName(run.arms[arm])}` : "");
    more();
  };
  const more = focus => {
    const arm = chosenArm(), dense = run.arms.findIndex(isDense), next = found.slice(shown, shown + PAGE).map(item => card(item, arm, dense));
    at("cards").append(...next);
    shown += next.length;
    at("more").hidden = shown >= found.length;
    at("more").textContent = `Show more (${shown} of ${found.length} shown)`;
    if (focus && next.length) next[0].focus();
  };

  // One question: the picture with what was kept, and the answers

  const verdict = answer => make("span", {class: answer[1] ? "right" : "wrong"}, `${answer[0] || "(nothing)"} (${answer[1] ? "right" : "wrong"})`);
  const card = (item, arm, dense) => {
    const kept = item.a[arm][2], canvas = make("canvas", {width: 448, height: 448, role: "img", "aria-label": kept === null
      ? "The picture; nothing was dropped" : `The picture with the ${unpack(kept).length} tokens that ${armName(run.arms[arm])} kept`});
    const lines = [["right answer", item.g], ...(dense >= 0 && dense !== arm && item.a[dense] ? [["dense", verdict(item.a[dense])]] : []), [armName(run.arms[arm]), verdict(item.a[arm])]];
    const list = pairs => make("dl", {}, ...pairs.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
    const rest = make("details", {}, make("summary", {}, "all methods"));
    rest.addEventListener("toggle", () => { // made when it is opened
      if (rest.open && rest.children.length === 1) rest.append(list(Object.entries(item.a).map(([i, answer]) => [armName(run.arms[i]), verdict(answer)])));
    });
    const [question, ...instruction] = item.t.split("\n");
    const whole = make("article", {class: "card", tabindex: "-1"}, canvas, make("h3", {}, question),
      instruction.length ? make("p", {class: "meta asked"}, instruction.join("\n")) : null, list(lines), rest, make("p", {class: "meta"}, `${item.b} · ${item.k} · question ${item.q}`));
    canvas.item = {picture: run.pictures[item.p], kept};
    near.observe(canvas);
    return whole;
  };
  const unpack = text => {
    const raw = atob(text), numbers = [];
    for (let i = 0; i < raw.length; i += 2) numbers.push(raw.charCodeAt(i) | raw.charCodeAt(i + 1) << 8);
    return numbers;
  };
  const near = new IntersectionObserver(entries => entries.filter(entry => entry.isIntersecting).forEach(entry => {
    near.unobserve(entry.target);
    paint(entry.target);
  }), {rootMargin: "400px"});
  const paint = canvas => {
    const {picture, kept} = canvas.item, pen = canvas.getContext("2d");
    if (!picture) {
      pen.font = "20px system-ui"; pen.fillStyle = "#808080"; pen.fillText("The picture no longer exists.", 60, 224);
      canvas.dataset.painted = "none";
      return;
    }
    const image = new Image();
    image.onload = () => {
      canvas.height = Math.round(canvas.width * image.naturalHeight / image.naturalWidth);
      pen.drawImage(image, 0, 0, canvas.width, canvas.height);
      if (kept !== null && run.grid) paintKept(pen, canvas, image, unpack(kept));
      canvas.dataset.painted = "done";
    };
    image.src = picture;
  };
  const paintKept = (pen, canvas, image, tokens) => {
    const [rows, columns] = run.grid, w = canvas.width / columns, h = canvas.height / rows;
    const iw = image.naturalWidth / columns, ih = image.naturalHeight / rows;
    pen.fillStyle = "rgba(255,255,255,0.68)";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.lineWidth = 2;
    tokens.forEach((token, place) => {
      const x = token % columns, y = Math.floor(token / columns);
      pen.drawImage(image, x * iw, y * ih, iw, ih, x * w, y * h, w, h);
      pen.strokeStyle = data.ramp[Math.round(place / Math.max(tokens.length - 1, 1) * (data.ramp.length - 1))];
      pen.strokeRect(x * w + 1, y * h + 1, w - 2, h - 2);
    });
  };

  const drawMade = () => {
    const block = (title, value) => make("details", {}, make("summary", {}, title), make("pre", {tabindex: "0"}, JSON.stringify(value, null, 2)));
    const parts = data.runs.flatMap(r => [make("h3", {}, r.name), block("versions and hardware", r.environment), block("settings", r.config), block("model", r.model), block("statistics", r.statistics)]);
    at("made").replaceChildren(...(parts.length ? parts : [make("p", {class: "note"}, "See the result files.")]));
  };
  const drawOthers = () => {
    at("others").hidden = !data.others.length;
    at("other-tables").replaceChildren(...data.others.flatMap(other => [make("h3", {}, other.name),
      ...other.tables.map(t => make("div", {}, make("p", {class: "note"}, t.title), table(t.title, t.head, t.rows.map(row => row.map(number))))),
      table(other.name, ["value", ""], Object.entries(other.numbers).map(([name, value]) => [name, number(value)]))]));
  };
  const drawRun = () => {
    at("about").textContent = `Model ${run.model.path || run.model.name || ""}, ${run.items.length} questions, ${run.pictures.length} pictures, ${run.arms.length} settings; ${(run.date || "").slice(0, 10)}`;
    drawAccuracy(); drawCosts(); fillFilters(); search();
  };

  at("more").addEventListener("click", () => more(true));
  at("filters").addEventListener("submit", event => event.preventDefault());
  at("f-method").addEventListener("change", fillBudgets);
  at("f-benchmark").addEventListener("change", fillKinds);
  at("filters").addEventListener("change", search);
  at("f-words").addEventListener("input", search);
  at("run").append(...data.runs.map((r, i) => make("option", {value: i}, r.name)));
  at("runs-label").hidden = data.runs.length < 2;
  at("run").addEventListener("change", () => { run = data.runs[+at("run").value]; drawRun(); });
  drawMade(); drawOthers();
  if (run) drawRun(); else for (const id of ["accuracy", "costs", "answers"]) at(id).hidden = true;
  document.documentElement.dataset.ready = "yes";
})();
