//! A terminal's screen as an SVG picture, for the README. The screen is given as text with colour
//! escapes, as `tmux capture-pane -e -p` prints it.

use std::fmt::Write as _;
use std::io::Read as _;

use anyhow::Context as _;

/// Size of a cell and of the letters in it, in the picture's units. A cell is as high as the font's line,
/// so that the lines of boxes meet.
const CELL: (f64, f64) = (8.43, 16.3);
const FONT_SIZE: f64 = 14.0;
/// Room around the screen.
const MARGIN: f64 = 14.0;

/// What `cargo xtask picture` takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// File with the captured screen; standard input if left out.
    screen: Option<std::path::PathBuf>,
    /// Where to write the picture; standard output if left out.
    #[arg(short, long)]
    output: Option<std::path::PathBuf>,
    /// What the picture shows, for those who cannot see it.
    #[arg(long, default_value = "The Drophammer dashboard")]
    title: String,
}

/// Reads a captured screen and writes its picture.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let screen = if let Some(path) = &options.screen {
        std::fs::read_to_string(path).with_context(|| format!("cannot read the screen {}", path.display()))?
    } else {
        let mut screen = String::new();
        std::io::stdin().read_to_string(&mut screen).context("cannot read the screen from standard input")?;
        screen
    };
    let picture = svg(&screen, &options.title);
    if let Some(path) = &options.output {
        std::fs::write(path, picture).with_context(|| format!("cannot write the picture {}", path.display()))
    } else {
        print!("{picture}");
        Ok(())
    }
}

type Rgb = (u8, u8, u8);

const TEXT: Rgb = (0xd5, 0xd2, 0xc8);
const BACKGROUND: Rgb = (0x1b, 0x1a, 0x16);

#[derive(Clone, Copy, PartialEq, Default)]
struct Pen {
    text: Option<Rgb>,
    background: Option<Rgb>,
    bold: bool,
    dim: bool,
    italic: bool,
    underlined: bool,
    reversed: bool,
}

impl Pen {
    /// What the letters and the ground behind them look like in the end.
    fn colours(self) -> (Rgb, Option<Rgb>) {
        let (text, background) = (self.text.unwrap_or(TEXT), self.background);
        let (text, background) =
            if self.reversed { (background.unwrap_or(BACKGROUND), Some(text)) } else { (text, background) };
        let ground = background.unwrap_or(BACKGROUND);
        let dimmed = (text.0.midpoint(ground.0), text.1.midpoint(ground.1), text.2.midpoint(ground.2));
        (if self.dim { dimmed } else { text }, background)
    }
}

/// A run of cells drawn with one pen.
struct Run {
    column: usize,
    width: usize,
    text: String,
    pen: Pen,
}

/// The picture of a screen.
pub(crate) fn svg(screen: &str, title: &str) -> String {
    let mut pen = Pen::default();
    let lines: Vec<Vec<Run>> = screen.lines().map(|line| runs(line, &mut pen)).collect();
    let columns = lines.iter().flatten().map(|run| run.column + run.width).max().unwrap_or(0) as f64;
    let (width, height) = (columns * CELL.0 + 2.0 * MARGIN, lines.len() as f64 * CELL.1 + 2.0 * MARGIN);
    let mut out = String::new();
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.1} {height:.1}\" role=\"img\">\n\
         <title>{}</title>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{}\"/>\n\
         <g font-family=\"ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace\" \
         font-size=\"{FONT_SIZE}\" xml:space=\"preserve\">\n",
        escaped(title),
        hex(BACKGROUND),
    );
    for (row, line) in lines.iter().enumerate() {
        let top = MARGIN + row as f64 * CELL.1;
        for run in line {
            draw_run(&mut out, run, top);
        }
    }
    out.push_str("</g>\n</svg>\n");
    out
}

fn draw_run(out: &mut String, run: &Run, top: f64) {
    let (text, background) = run.pen.colours();
    let (left, width) = (MARGIN + run.column as f64 * CELL.0, run.width as f64 * CELL.0);
    if let Some(background) = background {
        let _ = writeln!(
            out,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{}\" fill=\"{}\"/>",
            CELL.1,
            hex(background)
        );
    }
    if run.text.trim().is_empty() && !run.pen.underlined {
        return;
    }
    let mut look = String::new();
    for (on, attribute) in [
        (run.pen.bold, " font-weight=\"bold\""),
        (run.pen.italic, " font-style=\"italic\""),
        (run.pen.underlined, " text-decoration=\"underline\""),
    ] {
        if on {
            look.push_str(attribute);
        }
    }
    // The length is given, so that the columns stay in line whatever font is used.
    let _ = writeln!(
        out,
        "<text x=\"{left:.1}\" y=\"{:.1}\" textLength=\"{width:.1}\" lengthAdjust=\"spacingAndGlyphs\" \
         fill=\"{}\"{look}>{}</text>",
        top + CELL.1 * 0.8,
        hex(text),
        escaped(&run.text)
    );
}

/// Cuts a line into runs; the pen goes on into the next line.
fn runs(line: &str, pen: &mut Pen) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut column = 0;
    let mut characters = line.chars().peekable();
    while let Some(c) = characters.next() {
        if c == '\u{1b}' {
            let mut sequence = String::new();
            if characters.next_if_eq(&'[').is_some() {
                for c in characters.by_ref() {
                    sequence.push(c);
                    if c.is_ascii_alphabetic() {
                        break;
                    }
                }
            }
            if let Some(codes) = sequence.strip_suffix('m') {
                apply(pen, codes);
            }
            continue;
        }
        // The dashboard draws no wide characters of its own; a cell each is exact for everything else.
        match runs.last_mut() {
            Some(run) if run.pen == *pen => {
                run.text.push(c);
                run.width += 1;
            }
            _ => runs.push(Run { column, width: 1, text: c.to_string(), pen: *pen }),
        }
        column += 1;
    }
    runs
}

/// Select graphic rendition, ECMA-48 8.3.117, with the usual extensions 38 and 48.
fn apply(pen: &mut Pen, codes: &str) {
    let codes: Vec<u16> = codes.split([';', ':']).map(|code| code.parse().unwrap_or(0)).collect();
    let mut at = 0;
    while let Some(&code) = codes.get(at) {
        at += 1;
        match code {
            0 => *pen = Pen::default(),
            1 => pen.bold = true,
            2 => pen.dim = true,
            3 => pen.italic = true,
            4 => pen.underlined = true,
            7 => pen.reversed = true,
            22 => (pen.bold, pen.dim) = (false, false),
            23 => pen.italic = false,
            24 => pen.underlined = false,
            27 => pen.reversed = false,
            30..=37 => pen.text = Some(palette(code - 30)),
            90..=97 => pen.text = Some(palette(code - 82)),
            39 => pen.text = None,
            40..=47 => pen.background = Some(palette(code - 40)),
            100..=107 => pen.background = Some(palette(code - 92)),
            49 => pen.background = None,
            38 | 48 => {
                let colour = match codes[at..] {
                    [2, r, g, b, ..] => {
                        at += 4;
                        Some((r as u8, g as u8, b as u8))
                    }
                    [5, index, ..] => {
                        at += 2;
                        Some(palette(index))
                    }
                    _ => None,
                };
                if code == 38 {
                    pen.text = colour;
                } else {
                    pen.background = colour;
                }
            }
            _ => {}
        }
    }
}

/// xterm's 256 colours.
fn palette(index: u16) -> Rgb {
    const BASE: [Rgb; 16] = [
        (0x1b, 0x1a, 0x16),
        (0xe8, 0x70, 0x5f),
        (0x8f, 0xbf, 0x6a),
        (0xe6, 0xc0, 0x4f),
        (0x6f, 0xb3, 0xd9),
        (0xc9, 0x8f, 0xd6),
        (0x5f, 0xc2, 0xb0),
        (0xd5, 0xd2, 0xc8),
        (0x8a, 0x87, 0x79),
        (0xff, 0x8f, 0x80),
        (0xa9, 0xd9, 0x84),
        (0xff, 0xdb, 0x70),
        (0x8f, 0xcf, 0xf5),
        (0xe0, 0xac, 0xec),
        (0x7f, 0xdf, 0xcd),
        (0xff, 0xff, 0xff),
    ];
    let step = |value: u16| if value == 0 { 0 } else { (55 + 40 * value) as u8 };
    match index {
        0..16 => BASE[usize::from(index)],
        16..232 => {
            let cube = index - 16;
            (step(cube / 36), step(cube / 6 % 6), step(cube % 6))
        }
        _ => {
            let grey = (8 + 10 * (index.min(255) - 232)) as u8;
            (grey, grey, grey)
        }
    }
}

fn hex((r, g, b): Rgb) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_and_attributes_become_runs() {
        let picture = svg("\x1b[1;38;2;255;0;0mred\x1b[0m <plain>\n\x1b[7mturned\x1b[27m", "a & b");
        for wanted in [
            "<title>a &amp; b</title>",
            "fill=\"#ff0000\" font-weight=\"bold\">red</text>",
            "fill=\"#d5d2c8\"> &lt;plain&gt;</text>",
            "fill=\"#1b1a16\">turned</text>",
        ] {
            assert!(picture.contains(wanted), "{wanted} is not in {picture}");
        }
        assert_eq!(picture.matches("<text").count(), 3);
    }

    #[test]
    fn broken_escapes_do_no_harm() {
        for screen in ["\x1b", "\x1b[", "\x1b[38;2;1m", "\x1b[999999999999m", "\x1b[48;5m", "\x1b]0;title"] {
            svg(screen, "");
        }
    }

    #[test]
    fn the_256_colours_are_xterms() {
        for (index, expected) in
            [(16, (0, 0, 0)), (196, (255, 0, 0)), (231, (255, 255, 255)), (244, (128, 128, 128))]
        {
            assert_eq!(palette(index), expected);
        }
    }
}
