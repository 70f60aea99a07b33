//! How are numbers told to people? With about three figures, and their unit.

/// `612 MB`, `6.2 GB`: powers of ten, as disks and models are sold.
pub(crate) fn bytes(count: u64) -> String {
    let mut size = count as f64;
    let mut unit = "B";
    for larger in ["KB", "MB", "GB", "TB"] {
        if size < 999.5 {
            break;
        }
        size /= 1000.0;
        unit = larger;
    }
    let digits = usize::from(size < 99.5 && unit != "B");
    format!("{size:.digits$} {unit}")
}

/// `1,234`, `18.4`.
pub(crate) fn count(value: f64) -> String {
    if value < 99.95 && value.fract() != 0.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `0.4 ms`, `234 ms`, `1.2 s`.
pub(crate) fn seconds(value: f64) -> String {
    let milliseconds = value * 1000.0;
    if value >= 99.95 {
        format!("{value:.0} s")
    } else if value >= 0.9995 {
        format!("{value:.1} s")
    } else if milliseconds >= 9.95 {
        format!("{milliseconds:.0} ms")
    } else {
        format!("{milliseconds:.1} ms")
    }
}

pub(crate) fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_about_three_figures() {
        for (value, expected) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 KB"),
            (999_600, "1.0 MB"),
            (612_345_678, "612 MB"),
        ] {
            assert_eq!(bytes(value), expected);
        }
        for (value, expected) in
            [(0.0, "0"), (18.44, "18.4"), (999.6, "1,000"), (1234.5, "1,234"), (1e6, "1,000,000")]
        {
            assert_eq!(count(value), expected);
        }
        for (value, expected) in [
            (0.00042, "0.4 ms"),
            (0.234, "234 ms"),
            (0.9999, "1.0 s"),
            (1.23, "1.2 s"),
            (250.0, "250 s"),
        ] {
            assert_eq!(seconds(value), expected);
        }
        assert_eq!(percent(0.404), "40 %");
    }
}
