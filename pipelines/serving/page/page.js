// The gallery: a click on a picture chooses it, a click on its seed copies it.
element.addEventListener("click", async (event) => {
  const seed = event.target.closest("[data-copy]");
  if (seed) {
    const text = seed.dataset.copy;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Without HTTPS browsers have no clipboard: select a text field's content instead.
      const field = document.createElement("textarea");
      field.value = text;
      document.body.append(field);
      field.select();
      document.execCommand("copy");
      field.remove();
    }
    seed.textContent = "copied";
    setTimeout(() => (seed.textContent = text), 1000);
    return;
  }
  const picture = event.target.closest("[data-index]");
  if (picture) trigger("select", { index: Number(picture.dataset.index) });
});
