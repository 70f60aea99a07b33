//! Where may color go? To terminals, unless `NO_COLOR` is set or the terminal is dumb.
//!
//! <https://no-color.org>; `CLICOLOR_FORCE` asks for color where there is no terminal.

use std::io::IsTerminal;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Accent,
    Bad,
    Faint,
    Good,
    Strong,
    Warn,
}

impl Style {
    /// Its parameters of "select graphic rendition" (ECMA-48). The sixteen colors that every
    /// terminal lets its user choose, so that they are readable on any ground.
    fn codes(self) -> &'static str {
        match self {
            Self::Accent => "36",
            Self::Bad => "31",
            Self::Faint => "2",
            Self::Good => "32",
            Self::Strong => "1",
            Self::Warn => "33",
        }
    }
}

/// Colors texts, or leaves them as they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint {
    is_on: bool,
}

impl Paint {
    pub(crate) fn stdout() -> Self {
        Self::for_output(std::io::stdout().is_terminal())
    }

    pub(crate) fn stderr() -> Self {
        Self::for_output(std::io::stderr().is_terminal())
    }

    fn for_output(is_terminal: bool) -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let wishes = Wishes {
            no_color: set("NO_COLOR").is_some(),
            forced: set("CLICOLOR_FORCE").is_some_and(|text| text != "0"),
            dumb: set("TERM").is_some_and(|text| text == "dumb"),
        };
        Self { is_on: wishes.allow(is_terminal) }
    }

    /// The text is to be free of control characters.
    pub(crate) fn paint(self, style: Style, text: &str) -> String {
        if self.is_on && !text.is_empty() {
            format!("\x1b[{}m{text}\x1b[0m", style.codes())
        } else {
            text.to_owned()
        }
    }

    #[cfg(test)]
    pub(crate) fn off() -> Self {
        Self { is_on: false }
    }

    #[cfg(test)]
    pub(crate) fn on() -> Self {
        Self { is_on: true }
    }
}

/// What the environment says of colors.
struct Wishes {
    no_color: bool,
    forced: bool,
    dumb: bool,
}

impl Wishes {
    fn allow(&self, is_terminal: bool) -> bool {
        !self.no_color && (self.forced || (is_terminal && !self.dumb))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn color_goes_to_terminals_and_nobody_is_forced() {
        let wishes = |no_color, forced, dumb| Wishes { no_color, forced, dumb };
        for (given, is_terminal, expected) in [
            (wishes(false, false, false), true, true),
            (wishes(false, false, false), false, false),
            (wishes(true, false, false), true, false),
            (wishes(false, false, true), true, false),
            (wishes(false, true, false), false, true),
            (wishes(true, true, false), true, false),
        ] {
            assert_eq!(given.allow(is_terminal), expected);
        }
    }

    #[test]
    fn a_painted_text_is_closed() {
        assert_eq!(Paint::on().paint(Style::Good, "yes"), "\x1b[32myes\x1b[0m");
        assert_eq!(Paint::off().paint(Style::Good, "yes"), "yes");
    }
}
