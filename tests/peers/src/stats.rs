//! Statistics of a few measurements: median, range, and the slope of a line.

/// The median; for an even number of values, the mean of the two in the middle. `None` without values.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// The median of the rounds, with minimum and maximum. For five independent rounds, the true median lies between
/// minimum and maximum in 94 of 100 cases (1 - 2 / 2⁵).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    pub middle: f64,
    pub low: f64,
    pub high: f64,
    /// The number of rounds that have this figure.
    pub rounds: usize,
}

/// `None` without values.
pub fn figure(values: &[f64]) -> Option<Figure> {
    let low = values.iter().copied().min_by(f64::total_cmp)?;
    let high = values.iter().copied().max_by(f64::total_cmp)?;
    Some(Figure { middle: median(values)?, low, high, rounds: values.len() })
}

/// The growth of y per x, by least squares. `None` without two different x.
pub fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let n = points.len() as f64;
    let mean_x = points.iter().map(|(x, _)| x).sum::<f64>() / n;
    let mean_y = points.iter().map(|(_, y)| y).sum::<f64>() / n;
    let covariance: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let variance: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    (variance > 0.0).then(|| covariance / variance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[9.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn figures() {
        assert_eq!(figure(&[]), None);
        assert_eq!(figure(&[2.0, -1.0, 5.0]), Some(Figure { middle: 2.0, low: -1.0, high: 5.0, rounds: 3 }));
    }

    #[test]
    fn slopes() {
        assert_eq!(slope(&[]), None);
        assert_eq!(slope(&[(1.0, 5.0), (1.0, 6.0)]), None);
        let line: Vec<_> = [1.0, 2.0, 4.0, 8.0].map(|x| (x, 16.0 + 0.5 * x)).to_vec();
        assert!((slope(&line).unwrap() - 0.5).abs() < 1e-12);
        // Symmetric errors do not change the slope.
        assert_eq!(slope(&[(0.0, 1.0), (0.0, -1.0), (2.0, 5.0), (2.0, 3.0)]), Some(2.0));
    }
}
