//! The drawing beside `lattice log --graph`: what each entry follows, oldest first.

/// What a column of a row is joined to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Cell {
    up: bool,
    down: bool,
    left: bool,
    right: bool,
    node: bool,
}

impl Cell {
    const fn line(is: bool) -> Self {
        Self { up: is, down: is, left: false, right: false, node: false }
    }

    const fn symbol(self) -> char {
        if self.node {
            return '*';
        }
        match (self.up, self.down, self.left, self.right) {
            (false, false, false, false) => ' ',
            (true, true, false, false) => '│',
            (false, false, ..) => '─',
            (false, true, false, true) => '╭',
            (false, true, true, false) => '╮',
            (true, false, false, true) => '╰',
            (true, false, true, false) => '╯',
            (true, true, false, true) => '├',
            (true, true, true, false) => '┤',
            (false, true, true, true) => '┬',
            (true, false, true, true) => '┴',
            (true, true, true, true) => '┼',
            (true, false, false, false) => '╵',
            (false, true, false, false) => '╷',
        }
    }
}

fn drawn(row: &[Cell]) -> String {
    let mut text = String::new();
    for cell in row {
        text.push(cell.symbol());
        text.push(if cell.right { '─' } else { ' ' });
    }
    text.trim_end().to_owned()
}

/// What is drawn beside one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Drawing {
    /// Above it, if anything: where what it follows comes together.
    pub(super) above: Option<String>,
    /// Beside its first line.
    pub(super) node: String,
    /// Beside its further lines.
    pub(super) beside: String,
    /// Below it, if anything: where those that follow it part.
    pub(super) below: Option<String>,
}

/// Draws entries, given oldest first as their own name and those of their parents. Parents that are not given are left out.
pub(super) fn draw(entries: &[(Vec<u8>, Vec<Vec<u8>>)]) -> Vec<Drawing> {
    let known: std::collections::BTreeSet<&Vec<u8>> = entries.iter().map(|(name, _)| name).collect();
    // Columns, each with the entry that it leads to. From the newest down, since only parents are known.
    let mut lanes: Vec<Option<&Vec<u8>>> = Vec::new();
    let mut drawings = Vec::with_capacity(entries.len());
    for (name, parents) in entries.iter().rev() {
        let mut columns = (0..lanes.len()).filter(|lane| lanes[*lane] == Some(name));
        let (column, others) = (columns.next(), columns.collect::<Vec<_>>());
        let is_last = column.is_none();
        let column = column.unwrap_or_else(|| free(&mut lanes));
        let below = (!others.is_empty()).then(|| {
            let parts = joined(&lanes, column, &others, |_| Cell { down: true, ..Cell::default() });
            drawn(&parts)
        });
        for other in &others {
            lanes[*other] = None;
        }
        let row = |at: usize, lanes: &[Option<&Vec<u8>>]| -> Vec<Cell> {
            (0..lanes.len()).map(|lane| Cell::line(lane != at && lanes[lane].is_some())).collect()
        };
        let mut node = row(column, &lanes);
        node[column].node = true;
        let mut beside = row(column, &lanes);
        beside[column] = Cell::line(!is_last);
        lanes[column] = None;
        let mut ends = Vec::new();
        let mut parents = parents.iter().filter(|parent| known.contains(*parent));
        // The first goes straight on, also where another column leads to it: they come together beside it.
        lanes[column] = parents.next();
        for parent in parents {
            match lanes.iter().position(|lane| *lane == Some(parent)) {
                Some(lane) => ends.push((lane, true)),
                None => {
                    let lane = free(&mut lanes);
                    lanes[lane] = Some(parent);
                    ends.push((lane, false));
                }
            }
        }
        let above = (!ends.is_empty()).then(|| {
            let targets: Vec<usize> = ends.iter().map(|(lane, _)| *lane).collect();
            let mut parts = joined(&lanes, column, &targets, |lane| {
                let goes_on = ends.contains(&(lane, true));
                Cell { up: true, down: goes_on, ..Cell::default() }
            });
            parts[column].down = true;
            parts[column].up = lanes[column].is_some();
            drawn(&parts)
        });
        while lanes.last().is_some_and(Option::is_none) {
            lanes.pop();
        }
        drawings.push(Drawing { above, node: drawn(&node), beside: drawn(&beside), below });
    }
    drawings.reverse();
    drawings
}

/// A column that is not taken.
fn free(lanes: &mut Vec<Option<&Vec<u8>>>) -> usize {
    lanes.iter().position(Option::is_none).unwrap_or_else(|| {
        lanes.push(None);
        lanes.len() - 1
    })
}

/// A row in which `column` is joined to the columns `ends`.
fn joined(lanes: &[Option<&Vec<u8>>], column: usize, ends: &[usize], end: impl Fn(usize) -> Cell) -> Vec<Cell> {
    let mut row: Vec<Cell> = lanes.iter().map(|lane| Cell::line(lane.is_some())).collect();
    for at in ends {
        row[*at] = end(*at);
    }
    row[column] = Cell::line(true);
    for at in ends {
        let (first, last) = (column.min(*at), column.max(*at));
        for (place, cell) in row.iter_mut().enumerate().take(last + 1).skip(first) {
            cell.left |= place > first;
            cell.right |= place < last;
        }
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(entries: &[(&str, &[&str])]) -> String {
        let bytes = |name: &str| name.as_bytes().to_vec();
        let entries: Vec<_> = entries
            .iter()
            .map(|(name, parents)| (bytes(name), parents.iter().map(|name| bytes(name)).collect()))
            .collect();
        let mut text = String::new();
        for (drawing, (name, _)) in draw(&entries).into_iter().zip(&entries) {
            for line in
                [drawing.above, Some(format!("{} {}", drawing.node, String::from_utf8_lossy(name))), drawing.below]
            {
                text.extend(line.map(|line| line + "\n"));
            }
        }
        text
    }

    #[test]
    fn what_follows_one_another_is_one_line() {
        assert_eq!(picture(&[("a", &[]), ("b", &["a"]), ("c", &["b"])]), "* a\n* b\n* c\n");
    }

    #[test]
    fn what_was_done_apart_parts_and_comes_together() {
        let apart: &[(&str, &[&str])] =
            &[("a", &[]), ("b", &["a"]), ("x", &["a"]), ("c", &["b"]), ("m", &["c", "x"]), ("n", &["m"])];
        assert_eq!(picture(apart), "* a\n├─╮\n* │ b\n│ * x\n* │ c\n├─╯\n* m\n* n\n");
    }

    #[test]
    fn three_at_once_and_a_line_that_is_crossed() {
        let apart: &[(&str, &[&str])] =
            &[("a", &[]), ("b", &["a"]), ("c", &["a"]), ("d", &["a"]), ("e", &["b", "d"]), ("m", &["e", "c"])];
        let text = picture(apart);
        assert_eq!(text, "* a\n├─┬─╮\n* │ │ b\n│ * │ c\n│ │ * d\n├─┼─╯\n* │ e\n├─╯\n* m\n");
    }

    #[test]
    fn parents_that_are_not_shown_are_left_out() {
        assert_eq!(picture(&[("b", &["a"]), ("c", &["b", "z"])]), "* b\n* c\n");
    }
}
