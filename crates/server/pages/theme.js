// Dark or light? As the system says, until the person says otherwise. Loaded before the page is
// drawn, so that it never flashes in the wrong colors.

{
  const KEY = "pelton.theme";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try {
    chosen = localStorage.getItem(KEY);
  } catch {
    // Storage is switched off: the choice lasts as long as the page.
  }

  const show = () => {
    const isDark = chosen === null ? dark.matches : chosen === "dark";
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
    dispatchEvent(new Event("themechange"));
  };

  dark.addEventListener("change", show);
  addEventListener("themetoggle", () => {
    chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    try {
      localStorage.setItem(KEY, chosen);
    } catch {
      // As above.
    }
    show();
  });
  show();
}
