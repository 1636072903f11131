// The one script of a report: it finds leaves, and a page that does not run it lacks nothing else.
// It holds nothing of the user's, defines no global name, and touches only reports that no run of it
// has touched: a notebook may hold many, and runs it once for each.
(() => {
  const start = (report) => {
    const find = report.querySelector(".find");
    const input = find.querySelector("input");
    const said = find.querySelector("output");
    const tree = report.querySelector(".tree");
    const scopes = [...tree.querySelectorAll("details.scope")];
    let rows = null;
    let before = null;
    const read = () => [...tree.querySelectorAll("details.leaf")].map((row) => {
      const word = (name) => {
        const cell = row.querySelector("summary ." + name);
        return cell ? cell.textContent.toLowerCase().trim() : "";
      };
      return {
        row,
        words: { role: word("role"), scale: word("scale"), decay: word("decay") },
        paths: [...row.querySelectorAll(".members li")].map(
          (item) => ({ item, text: item.textContent.toLowerCase() })
        ),
      };
    });
    const fits = (term, words, text) => {
      const [field, wanted] = term.split(/:(.*)/s);
      if (field in words && wanted !== undefined) return words[field].split(" ").includes(wanted);
      return text.includes(term) || Object.values(words).some((word) => word.includes(term));
    };
    const clear = () => {
      for (const each of tree.querySelectorAll("[hidden]")) each.hidden = false;
      if (before) scopes.forEach((scope, place) => { scope.open = before[place]; });
      before = null;
      said.textContent = "";
    };
    const show = () => {
      const terms = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      if (!terms.length) return clear();
      rows = rows || read();
      before = before || scopes.map((scope) => scope.open);
      for (const scope of scopes) scope.hidden = true;
      let found = 0;
      let all = 0;
      for (const { row, words, paths } of rows) {
        let here = 0;
        for (const { item, text } of paths) {
          const fit = terms.every((term) => fits(term, words, text));
          item.hidden = !fit;
          here += fit;
        }
        row.hidden = !here;
        found += here;
        all += paths.length;
        for (let up = here && row.parentElement.closest("details.scope"); up && up.hidden;
             up = up.parentElement.closest("details.scope")) {
          up.hidden = false;
          up.open = true;
        }
      }
      said.textContent = `${found.toLocaleString("en")} of ${all.toLocaleString("en")} leaves`;
    };
    input.addEventListener("input", show);
    input.addEventListener("keydown", (event) => event.stopPropagation());
    for (const button of find.querySelectorAll("button")) {
      button.addEventListener("click", () => {
        for (const scope of scopes) scope.open = button.value === "open";
      });
    }
    find.hidden = false;
  };
  for (const report of document.querySelectorAll(".bnmask .leaves:not([data-live])")) {
    report.dataset.live = "";
    start(report);
  }
})();
