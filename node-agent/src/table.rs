//! Columns.

use std::fmt::Write as _;

/// A cell with colours.
pub type Paint = fn(&str) -> String;

/// Rows under a header.
#[derive(Debug, Clone, Default)]
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    #[must_use]
    pub fn new(header: &[&'static str]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; it has as many cells as the header.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The text; `paint` colours cells.
    #[must_use]
    pub fn render(&self, paint: Option<Paint>) -> String {
        let mut widths: Vec<usize> = self.header.iter().map(|cell| cell.len()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut out = String::new();
        let header: Vec<String> = self.header.iter().map(|&cell| cell.to_owned()).collect();
        for (index, row) in std::iter::once(&header).chain(&self.rows).enumerate() {
            let mut line = String::new();
            for (cell, &width) in row.iter().zip(&widths) {
                let gap = width - cell.chars().count().min(width) + 2;
                let shown = match paint {
                    Some(paint) if index > 0 => paint(cell),
                    _ => cell.clone(),
                };
                // Writing to a String does not fail.
                let _ = write!(line, "{shown}{:gap$}", "");
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}
