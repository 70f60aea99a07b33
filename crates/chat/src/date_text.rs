//! What does `strftime_now('%d %b %Y')` print?
//!
//! The time is an argument and always UTC: a worker reads neither clock nor time zone.

const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

struct Date {
    year: i64,
    /// From 1.
    month: usize,
    /// From 1.
    day: i64,
    /// From 0.
    day_of_year: i64,
    /// From 0, Sunday.
    weekday: usize,
    second_of_day: i64,
}

/// Formats by C's and Python's directives; an unknown one is an error that names it.
pub fn strftime(unix_s: i64, format: &str) -> Result<String, String> {
    // Room for every sensible format; each directive gives at most 9 letters.
    const FORMAT_BYTES_MAX: usize = 256;
    if format.len() > FORMAT_BYTES_MAX {
        return Err("the date format is longer than 256 bytes".to_owned());
    }
    let date = Date::of(unix_s);
    let mut text = String::new();
    let mut rest = format.chars();
    while let Some(letter) = rest.next() {
        if letter != '%' {
            text.push(letter);
            continue;
        }
        match rest.next() {
            // glibc's `-` drops the padding.
            Some('-') => {
                let padded = date.directive(rest.next())?;
                let bare = padded.trim_start_matches(['0', ' ']);
                text.push_str(if bare.is_empty() { "0" } else { bare });
            }
            directive => text.push_str(&date.directive(directive)?),
        }
    }
    Ok(text)
}

impl Date {
    /// Days to year, month and day in the proleptic Gregorian calendar, after Howard Hinnant's
    /// `civil_from_days`: years begin in March so that the leap day comes last.
    fn of(unix_s: i64) -> Self {
        // Years 1 to 9999, as Python's datetime; keeps the arithmetic far from overflow.
        let unix_s = unix_s.clamp(-62_135_596_800, 253_402_300_799);
        let (days, second_of_day) = (unix_s.div_euclid(86_400), unix_s.rem_euclid(86_400));
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let march_day = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * march_day + 2) / 153;
        let day = march_day - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        let month = usize::try_from(month).expect("invariant: a month is 1 to 12");
        let day_of_year = before[month - 1] + day - 1 + i64::from(leap && month > 2);
        let weekday = (days + 4).rem_euclid(7);
        let weekday = usize::try_from(weekday).expect("invariant: a remainder of 7 is 0 to 6");
        Self { year, month, day, day_of_year, weekday, second_of_day }
    }

    fn directive(&self, letter: Option<char>) -> Result<String, String> {
        let (hour, minute) = (self.second_of_day / 3_600, self.second_of_day / 60 % 60);
        let hour12 = (hour + 11) % 12 + 1;
        Ok(match letter {
            Some('Y') => self.year.to_string(),
            Some('y') => format!("{:02}", self.year % 100),
            Some('m') => format!("{:02}", self.month),
            Some('d') => format!("{:02}", self.day),
            Some('e') => format!("{:2}", self.day),
            Some('j') => format!("{:03}", self.day_of_year + 1),
            Some('B') => MONTHS[self.month - 1].to_owned(),
            Some('b' | 'h') => MONTHS[self.month - 1][..3].to_owned(),
            Some('A') => DAYS[self.weekday].to_owned(),
            Some('a') => DAYS[self.weekday][..3].to_owned(),
            Some('w') => self.weekday.to_string(),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{hour12:02}"),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{:02}", self.second_of_day % 60),
            Some('p') => (if hour < 12 { "AM" } else { "PM" }).to_owned(),
            Some('F') => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
            Some('T') => format!("{hour:02}:{minute:02}:{:02}", self.second_of_day % 60),
            // The time of `datetime.now()` has no zone: Python prints nothing for these.
            Some('Z' | 'z') => String::new(),
            Some('%') => "%".to_owned(),
            Some(other) => return Err(format!("the date directive `%{other}` is not supported")),
            None => return Err("the date format ends in `%`".to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn dates_print_as_in_c() {
        // From `date -u -d @N` of GNU coreutils.
        let all = "%Y-%m-%d %H:%M:%S %a %A %b %B %j %y %e %I %p %w";
        let check = |unix_s, expected| assert_eq!(strftime(unix_s, all).unwrap(), expected);
        check(0, "1970-01-01 00:00:00 Thu Thursday Jan January 001 70  1 12 AM 4");
        check(951_827_696, "2000-02-29 12:34:56 Tue Tuesday Feb February 060 00 29 12 PM 2");
        check(1_735_689_599, "2024-12-31 23:59:59 Tue Tuesday Dec December 366 24 31 11 PM 2");
        assert_eq!(strftime(0, "%-d %-m|%F|%T|%%|%Z").unwrap(), "1 1|1970-01-01|00:00:00|%|");
    }

    #[test]
    fn odd_formats_and_times_are_errors_or_clamped() {
        assert!(strftime(0, "%Q").unwrap_err().contains("%Q"));
        assert!(strftime(0, "%").is_err());
        assert!(strftime(0, &"%B".repeat(200)).is_err());
        assert_eq!(strftime(i64::MAX, "%Y").unwrap(), "9999");
        assert_eq!(strftime(i64::MIN, "%F").unwrap(), "1-01-01");
    }
}
