//! The terminal view: picture, answer, actions, timings.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use ratatui::Frame as Screen;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Widget, Wrap};

use crate::shown::{Latest, Shown};
use crate::stats::STAGES;

/// How often the keyboard is looked at when no frame comes.
const TICK: Duration = Duration::from_millis(33);
/// Heights of a chunk's steps within one line.
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Shows what `latest` holds until the loop ends, or a key or `stop` ends it; the terminal is itself again after that.
///
/// # Errors
/// If the terminal cannot be drawn on.
pub(crate) fn show<T>(latest: &Latest, stop: &AtomicBool, looking: &JoinHandle<T>) -> anyhow::Result<()> {
    // Also installs a panic hook that gives the terminal back before anything is printed.
    let mut terminal = ratatui::try_init().context("the terminal cannot be drawn on: use --headless")?;
    let ended = draw_until_done(&mut terminal, latest, stop, looking);
    ratatui::restore();
    // Whatever ended the view ends the loop.
    stop.store(true, Ordering::Relaxed);
    ended.context("the terminal cannot be drawn on: use --headless")
}

fn draw_until_done<T>(
    terminal: &mut ratatui::DefaultTerminal,
    latest: &Latest,
    stop: &AtomicBool,
    looking: &JoinHandle<T>,
) -> std::io::Result<()> {
    let mut shown = latest.read(Clone::clone);
    terminal.draw(|screen| draw(screen, &shown))?;
    while !stop.load(Ordering::Relaxed) && !looking.is_finished() {
        let number = shown.number;
        let mut redraw = latest.wait_after(number, TICK, &mut shown);
        while event::poll(Duration::ZERO)? {
            match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release => {
                    let control_c =
                        key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
                    if control_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                        return Ok(());
                    }
                }
                Event::Resize(..) => redraw = true,
                _ => {}
            }
        }
        if redraw {
            terminal.draw(|screen| draw(screen, &shown))?;
        }
    }
    Ok(())
}

/// One screen: the picture on the left, everything else beside it.
fn draw(screen: &mut Screen, shown: &Shown) {
    let [body, foot] = Layout::vertical([Constraint::Min(1), Constraint::Length(1)]).areas(screen.area());
    let [left, right] =
        Layout::horizontal([Constraint::Percentage(55), Constraint::Percentage(45)]).areas(body);
    screen.render_widget(Picture(shown), left);
    let inner = Rect { x: right.x + 2.min(right.width), width: right.width.saturating_sub(2), ..right };
    let rows = u16::try_from(shown.action_names.len()).unwrap_or(u16::MAX);
    let [answer, actions, timings] = Layout::vertical([
        Constraint::Min(4),
        Constraint::Length(rows.saturating_add(2)),
        Constraint::Length(u16::try_from(STAGES.len()).unwrap_or(0) + 1),
    ])
    .areas(inner);
    let question = Line::from(shown.question.as_str()).dim();
    let words = vec![question, Line::from(shown.text.as_str()).bold()];
    screen.render_widget(Paragraph::new(words).wrap(Wrap { trim: true }), answer);
    screen.render_widget(Paragraph::new(action_lines(shown)), actions);
    screen.render_widget(Paragraph::new(timing_lines(shown)), timings);
    let status = format!(
        "frame {}  {:.1} frames/s  {:.0} ms old  {} dropped",
        shown.seq, shown.summary.frames_per_s, shown.age_ms, shown.dropped
    );
    let trouble = Span::raw(format!("{}  ", shown.trouble)).yellow();
    screen.render_widget(Line::from(vec![trouble, Span::raw(status), Span::raw("  q quits").dim()]), foot);
}

/// One line a dimension: its name, the next value, and the chunk's steps as bars over the range of the training data.
fn action_lines(shown: &Shown) -> Vec<Line<'_>> {
    let dims = shown.action_names.len().max(1);
    let mut lines = vec![Line::from("predicted actions").dim()];
    for (dim, name) in shown.action_names.iter().enumerate() {
        let value = shown.action.get(dim).copied().unwrap_or(0.0);
        let bars: String =
            shown.action_units.iter().skip(dim).step_by(dims).map(|&unit| level(unit)).collect();
        lines.push(Line::from(vec![
            Span::raw(format!("{name:<10.10} {value:>6.2}  ")),
            Span::raw(bars).cyan(),
        ]));
    }
    lines
}

fn level(unit: f32) -> char {
    // A unit lies between 0 and 1, so the product fits; NaN becomes the lowest level.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let at = (unit * 8.0) as usize;
    LEVELS[at.min(LEVELS.len() - 1)]
}

fn timing_lines(shown: &Shown) -> Vec<Line<'_>> {
    let mut lines = vec![Line::from(format!("{:<10}{:>9}{:>9}", "ms", "p50", "p95")).dim()];
    for (stage, p) in STAGES.iter().zip(&shown.summary.stages) {
        lines.push(Line::from(format!("{stage:<10}{:>9.2}{:>9.2}", p.p50, p.p95)));
    }
    lines
}

/// The picture in half blocks: two pixels a cell, the upper as foreground and the lower as background.
struct Picture<'a>(&'a Shown);

impl Widget for Picture<'_> {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let (width, height) = (self.0.width, self.0.height);
        let pixels = width as usize * height as usize * 3;
        if pixels == 0 || self.0.rgb.len() != pixels || area.is_empty() {
            return;
        }
        let (columns, rows) = fit((width, height), (area.width.into(), u32::from(area.height) * 2));
        for y in 0..rows.div_ceil(2) {
            for x in 0..columns {
                let upper = self.mean((x, 2 * y), (columns, rows));
                let lower = self.mean((x, (2 * y + 1).min(rows - 1)), (columns, rows));
                // Both lie inside the area, whose sides are 16 bits.
                #[allow(clippy::cast_possible_truncation)]
                let cell = buffer.cell_mut((area.x + x as u16, area.y + y as u16));
                if let Some(cell) = cell {
                    cell.set_symbol("▀").set_style(Style::new().fg(upper).bg(lower));
                }
            }
        }
    }
}

impl Picture<'_> {
    /// The mean colour of the pixels under place `(x, y)` of a grid.
    fn mean(&self, (x, y): (u32, u32), (columns, rows): (u32, u32)) -> Color {
        let span = |at: u32, of: u32, side: u32| {
            let from = u64::from(at) * u64::from(side) / u64::from(of);
            let to = (u64::from(at) + 1) * u64::from(side) / u64::from(of);
            // No longer than a side of the picture, which is 32 bits.
            #[allow(clippy::cast_possible_truncation)]
            (from as usize, to.max(from + 1) as usize)
        };
        let ((x0, x1), (y0, y1)) = (span(x, columns, self.0.width), span(y, rows, self.0.height));
        let mut sums = [0_usize; 3];
        for row in y0..y1 {
            let start = (row * self.0.width as usize + x0) * 3;
            for pixel in self.0.rgb[start..][..(x1 - x0) * 3].chunks_exact(3) {
                sums.iter_mut().zip(pixel).for_each(|(sum, &value)| *sum += usize::from(value));
            }
        }
        let count = (x1 - x0) * (y1 - y0);
        let [r, g, b] = sums.map(|sum| u8::try_from(sum / count).unwrap_or(u8::MAX));
        Color::Rgb(r, g, b)
    }
}

/// The largest grid with the picture's proportions that fits; cells are taken to be twice as high as wide.
fn fit((width, height): (u32, u32), (columns, rows): (u32, u32)) -> (u32, u32) {
    let (w, h, c, r) = (u64::from(width), u64::from(height), u64::from(columns), u64::from(rows));
    let (c, r) = if c * h <= r * w { (c, (c * h / w).max(1)) } else { ((r * w / h).max(1), r) };
    (u32::try_from(c).unwrap_or(columns), u32::try_from(r).unwrap_or(rows))
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn shown() -> Shown {
        let rgb = [[250_u8, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 250]].concat();
        Shown {
            number: 1,
            rgb,
            width: 2,
            height: 2,
            question: "what is happening?".into(),
            text: "the robot opens the door.".into(),
            action_names: vec!["dx".into(), "dy".into()],
            action_units: vec![0.0, 1.0, 0.5, 1.0],
            action: vec![-1.0, 1.0, 0.0, 1.0],
            ..Shown::default()
        }
    }

    fn screen(shown: &Shown, width: u16, height: u16) -> Terminal<TestBackend> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|screen| draw(screen, shown)).unwrap();
        terminal
    }

    #[test]
    fn a_screen_shows_picture_words_actions_and_timings() {
        let terminal = screen(&shown(), 80, 24);
        let text = terminal.backend().to_string();
        for word in
            ["what is happening?", "opens the door", "dx", "▁▅", "██", "prefill", "frames/s", "q quits"]
        {
            assert!(text.contains(word), "no {word} in\n{text}");
        }
        let buffer = terminal.backend().buffer();
        let corner = &buffer[(0, 0)];
        assert_eq!((corner.symbol(), corner.fg), ("▀", Color::Rgb(250, 0, 0)));
        assert_eq!(buffer[(43, 21)].bg, Color::Rgb(250, 250, 250));
    }

    #[test]
    fn no_size_of_terminal_or_picture_panics() {
        for (width, height) in [(1, 1), (2, 3), (5, 2), (200, 5), (7, 60)] {
            screen(&shown(), width, height);
            screen(&Shown::default(), width, height);
            for (w, h) in [(1, 1), (1, 500), (500, 1), (3, 2), (0, 7)] {
                let picture = Shown { width: w, height: h, rgb: vec![9; (w * h * 3) as usize], ..shown() };
                screen(&picture, width, height);
            }
        }
        let torn = Shown { rgb: vec![0; 5], ..shown() };
        screen(&torn, 20, 10);
    }

    #[test]
    fn the_picture_keeps_its_proportions() {
        assert_eq!(fit((64, 64), (44, 46)), (44, 44));
        assert_eq!(fit((192, 108), (40, 60)), (40, 22));
        assert_eq!(fit((10, 1000), (40, 60)), (1, 60));
    }

    #[test]
    fn levels_cover_the_range() {
        assert_eq!((level(0.0), level(0.99), level(1.0), level(f32::NAN)), ('▁', '█', '█', '▁'));
    }
}
