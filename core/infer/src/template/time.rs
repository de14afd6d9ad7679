//! The date that templates may show.

/// A moment as a calendar shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CivilTime {
    /// Year, such as 2026.
    pub year: i64,
    /// Month, from 1.
    pub month: u32,
    /// Day of the month, from 1.
    pub day: u32,
    /// Hour, 0 to 23.
    pub hour: u32,
    /// Minute.
    pub minute: u32,
    /// Second.
    pub second: u32,
    /// Day of the week, Sunday is 0.
    pub weekday: u32,
    /// Day of the year, from 1.
    pub year_day: u32,
}

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
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl CivilTime {
    /// From seconds since 1970, in the time zone they are counted in.
    /// Algorithm: Howard Hinnant, <https://howardhinnant.github.io/date_algorithms.html#civil_from_days>.
    pub fn from_unix_seconds(seconds: i64) -> Self {
        let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = (day_of_year - (153 * shifted_month + 2) / 5 + 1) as u32;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 } as u32;
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month as usize - 1];
        Self {
            year,
            month,
            day,
            hour: (second / 3600) as u32,
            minute: (second / 60 % 60) as u32,
            second: (second % 60) as u32,
            weekday: (days + 4).rem_euclid(7) as u32,
            year_day: before + day + u32::from(leap && month > 2),
        }
    }

    /// C's `strftime`, as far as templates use it; directives it does not know stay as they are.
    pub(super) fn format(&self, format: &str) -> String {
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let directive = chars.next();
            // `%-d` drops the leading zero.
            let bare = directive == Some('-');
            let directive = if bare { chars.next() } else { directive };
            let text = directive.and_then(|d| self.directive(d));
            match (text, directive) {
                (Some(text), _) if bare => {
                    let trimmed = text.trim_start_matches('0');
                    out.push_str(if trimmed.is_empty() { "0" } else { trimmed });
                }
                (Some(text), _) => out.push_str(&text),
                (None, directive) => {
                    out.push('%');
                    out.extend(bare.then_some('-'));
                    out.extend(directive);
                }
            }
        }
        out
    }

    fn directive(&self, directive: char) -> Option<String> {
        let month = MONTHS.get((self.month as usize).wrapping_sub(1)).copied().unwrap_or("");
        let day = DAYS.get(self.weekday as usize).copied().unwrap_or("");
        let short = |name: &str| name.chars().take(3).collect::<String>();
        Some(match directive {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year.rem_euclid(100)),
            'm' => format!("{:02}", self.month),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'B' => month.to_owned(),
            'b' | 'h' => short(month),
            'A' => day.to_owned(),
            'a' => short(day),
            'H' => format!("{:02}", self.hour),
            'I' => format!("{:02}", (self.hour + 11) % 12 + 1),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.to_owned(),
            'M' => format!("{:02}", self.minute),
            'S' => format!("{:02}", self.second),
            'j' => format!("{:03}", self.year_day),
            'w' => self.weekday.to_string(),
            'F' => self.format("%Y-%m-%d"),
            'T' => self.format("%H:%M:%S"),
            'D' => self.format("%m/%d/%y"),
            'Z' => "UTC".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // From Python: datetime.fromtimestamp(s, timezone.utc).strftime(...)
        for (seconds, expected) in [
            (0, "Thu 01 Jan 1970 00:00:00 001"),
            (951_782_399, "Mon 28 Feb 2000 23:59:59 059"),
            (951_868_799, "Tue 29 Feb 2000 23:59:59 060"),
            (1_735_689_599, "Tue 31 Dec 2024 23:59:59 366"),
            (-1, "Wed 31 Dec 1969 23:59:59 365"),
        ] {
            assert_eq!(CivilTime::from_unix_seconds(seconds).format("%a %d %b %Y %T %j"), expected);
        }
        let time = CivilTime::from_unix_seconds(1_735_700_645);
        assert_eq!(
            time.format("%-d %B %y, %I:%M %p, %A %Q 100%% %"),
            "1 January 25, 03:04 AM, Wednesday %Q 100% %"
        );
    }
}
