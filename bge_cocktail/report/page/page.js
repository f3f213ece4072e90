"use strict";
(() => {
  const blocks = JSON.parse(document.getElementById("report-data").textContent);
  const root = document.documentElement;
  const PAGE = 8;

  // light or dark: as the system has it, until the reader chooses
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const setTheme = () => {
    root.dataset.theme = chosen ?? (system.matches ? "dark" : "light");
    document.querySelectorAll(".plot.drawn").forEach((plot) => Plotly.relayout(plot, colours()));
  };
  system.addEventListener("change", setTheme);
  document.getElementById("theme").addEventListener("click", () => {
    chosen = root.dataset.theme === "dark" ? "light" : "dark";
    setTheme();
  });

  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const colours = () => {
    const found = { "font.color": css("--ink"), "hoverlabel.bgcolor": css("--card"), "hoverlabel.font.color": css("--ink"), "hoverlabel.bordercolor": css("--line"),
      "modebar.bgcolor": "rgba(0,0,0,0)", "modebar.color": css("--soft"), "modebar.activecolor": css("--accent") };
    for (const axis of ["xaxis", "yaxis"]) {
      found[axis + ".gridcolor"] = css("--grid");
      found[axis + ".linecolor"] = css("--line");
      found[axis + ".zerolinecolor"] = css("--grid");
    }
    return found;
  };

  // plots are drawn when they come near the window
  const draw = (figure) => {
    const block = blocks[figure.dataset.block];
    const place = figure.querySelector(".plot");
    const tab = figure.querySelector('[aria-selected="true"]'), select = figure.querySelector("select");
    const name = tab ? tab.dataset.figure : select ? select.value : Object.keys(block.figures)[0];
    const { data, layout } = block.figures[name];
    const narrow = place.clientWidth < 520;
    const shown = (key, value) => {
      if (key === "text" && typeof value === "string" && value.startsWith("@")) return block.shared[value.slice(1)];
      return narrow && key === "mode" ? value.replace("+text", "") : value;  // names would cover each other; the legend has them
    };
    const traces = data.map((trace) => Object.fromEntries(Object.entries(trace).map(([key, value]) => [key, shown(key, value)])));
    const margin = { ...layout.margin };
    if (narrow && margin.l > 100) margin.l = 100;
    const title = (axis) => (axis && typeof axis.title === "string" ? { ...axis, title: { text: axis.title } } : axis);
    const full = {
      ...layout, margin, xaxis: { automargin: true, ...title(layout.xaxis) }, yaxis: { automargin: true, ...title(layout.yaxis) },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: narrow ? 11 : 13 },
      hoverlabel: { align: "left" }, hovermode: "closest",
    };
    return Plotly.react(place, traces, full, { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"], displayModeBar: narrow ? false : "hover" })
      .then(() => { place.classList.add("drawn"); return Plotly.relayout(place, colours()); });
  };
  const near = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (!entry.isIntersecting) return;
    near.unobserve(entry.target);
    draw(entry.target);
  }), { rootMargin: "300px" });
  document.querySelectorAll("figure[data-block]").forEach((figure) => {
    near.observe(figure);
    const tabs = [...figure.querySelectorAll('[role="tab"]')];
    figure.querySelector("select")?.addEventListener("change", () => draw(figure));
    tabs.forEach((tab) => tab.addEventListener("click", () => {
      tabs.forEach((other) => other.setAttribute("aria-selected", String(other === tab)));
      draw(figure);
    }));
  });

  const element = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children.filter((child) => child !== null));
    return made;
  };
  const signed = (value) => (value > 0 ? "+" : "") + (100 * value).toFixed(1);
  const rank = (value) => (value === null ? "not found" : "rank " + value);

  const documentLine = (block, task, id, said, relevant) =>
    element("div", { className: "doc" + (relevant ? " relevant-one" : "") },
      element("i", { textContent: said + " " }), block.documents[task]?.[id] ?? id);

  const card = (block, row) => {
    const difference = row.after - row.before;
    const item = element("li", {}, element("div", { className: "asked" }, element("b", { textContent: row.text }),
      element("span", { className: "pill " + (difference > 0 ? "better" : "worse"), textContent: signed(difference) })));
    const ranked = Array.isArray(row.wanted);
    const first = ranked ? row.wanted[0] : null;
    const short = ranked
      ? (first ? `${rank(first[1])} → ${rank(first[2])}` : "")
      : `${row.said[0]} → ${row.said[1]}; labelled ${row.wanted}`;
    item.append(element("div", { className: "meta", textContent: `${row.task}, ${row.id} · ${row.model} · ${short}` }));
    if (ranked) {
      const relevant = element("div", { className: "relevant" },
        ...row.wanted.map(([id, before, after]) => documentLine(block, row.task, id, `${rank(before)} → ${rank(after)}:`, true)));
      const side = (title, documents) => element("div", {}, element("h4", { textContent: title }),
        ...documents.map(([id, good], place) => documentLine(block, row.task, id, place + 1 + ".", good)));
      item.append(relevant, element("details", {}, element("summary", { textContent: "what was found first" }),
        element("div", { className: "sides" }, side(block.baseline, row.said[0]), side(row.model, row.said[1]))));
    }
    return item;
  };

  document.querySelectorAll(".queries").forEach((place) => {
    const block = blocks[place.dataset.block];
    const search = place.querySelector("input"), list = place.querySelector(".rows");
    const found = place.querySelector(".found"), more = place.querySelector(".more");
    const selects = Object.fromEntries([...place.querySelectorAll("select")].map((one) => [one.name, one]));
    for (const name of ["model", "task"]) {
      const values = [...new Set(block.rows.map((row) => row[name]))];
      selects[name].append(element("option", { value: "", textContent: `all ${name}s` }),
        ...values.map((value) => element("option", { value, textContent: value })));
      selects[name].hidden = values.length < 2;
    }
    const textOf = (row) => [row.text, row.id, ...(Array.isArray(row.wanted) ? row.wanted.map(([id]) => id) : [row.wanted]),
      ...(Array.isArray(row.wanted) ? [...row.wanted, ...row.said.flat()].map(([id]) => block.documents[row.task]?.[id] ?? "") : [])]
      .join("\n").toLowerCase();
    const texts = block.rows.map(textOf);
    let matching = [], shown = 0;
    const showMore = () => {
      list.append(...matching.slice(shown, shown + PAGE).map((row) => card(block, row)));
      shown = Math.min(matching.length, shown + PAGE);
      more.hidden = shown >= matching.length;
    };
    const update = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const side = selects.side.value;
      matching = block.rows.filter((row, number) =>
        (!selects.model.value || row.model === selects.model.value) && (!selects.task.value || row.task === selects.task.value) &&
        (!side || (row.after > row.before) === (side === "gained")) && words.every((word) => texts[number].includes(word)));
      matching.sort((one, other) => Math.abs(other.after - other.before) - Math.abs(one.after - one.before));
      const gained = matching.filter((row) => row.after > row.before).length;
      found.textContent = `${matching.length} shown: ${gained} gained, ${matching.length - gained} lost against ${block.baseline}`;
      list.replaceChildren();
      shown = 0;
      showMore();
    };
    search.addEventListener("input", update);
    Object.values(selects).forEach((one) => one.addEventListener("change", update));
    more.addEventListener("click", showMore);
    update();
  });
  // a run goes on: the file is written anew, and read anew where nobody is typing
  const seconds = Number(document.body.dataset.reload);
  if (seconds) setInterval(() => document.activeElement?.matches("input") || location.reload(), 1000 * seconds);
  setTheme();
})();
