//! Percentages: those of Envoy's documentation.

use super::*;

fn health(percent: &[usize]) -> Vec<LevelHealth> {
    percent.iter().map(|healthy| LevelHealth { healthy: *healthy, all: 100 }).collect()
}

#[test]
fn level_takes_over_what_those_above_cannot_bear() {
    for (healthy, expected) in [
        (&[100, 100][..], &[100, 0][..]),
        (&[72, 100], &[100, 0]),
        (&[71, 100], &[99, 1]),
        (&[50, 100], &[70, 30]),
        (&[25, 100], &[35, 65]),
        (&[0, 100], &[0, 100]),
        (&[100], &[100]),
        (&[1], &[100]),
        (&[72, 72, 100], &[100, 0, 0]),
        (&[71, 71, 100], &[99, 1, 0]),
        (&[50, 50, 100], &[70, 30, 0]),
        (&[25, 100, 100], &[35, 65, 0]),
        (&[25, 25, 100], &[35, 35, 30]),
        // Too few in total: in proportion.
        (&[25, 25], &[50, 50]),
        (&[20, 10], &[67, 33]),
    ] {
        let loads: Vec<_> = loads(&health(healthy), 140, 0).iter().map(|load| load.percent).collect();
        assert_eq!(loads, expected, "{healthy:?}");
    }
    let [first, second] = loads(&health(&[50, 100]), 200, 0)[..] else { panic!("two levels") };
    assert_eq!((first.percent, second.percent), (100, 0), "another factor");
}

#[test]
fn level_panics_only_if_all_levels_together_are_too_few() {
    for (healthy, expected) in [
        (&[72, 0][..], &[(100, false), (0, false)][..]),
        (&[50, 60], &[(70, false), (30, false)]),
        // 35 % and 70 % are enough.
        (&[25, 50], &[(35, false), (65, false)]),
        (&[5, 65], &[(8, true), (92, false)]),
        (&[50], &[(100, false)]),
        (&[49], &[(100, true)]),
        (&[0], &[(100, true)]),
    ] {
        let loads: Vec<_> = loads(&health(healthy), 140, 50).iter().map(|l| (l.percent, l.is_panicking)).collect();
        assert_eq!(loads, expected, "{healthy:?}");
    }
    // In total panic, by the number of endpoints.
    let levels = [LevelHealth { healthy: 0, all: 1 }, LevelHealth { healthy: 1, all: 3 }];
    let load = |percent| LevelLoad { percent, is_panicking: true };
    assert_eq!(loads(&levels, 140, 50), [load(25), load(75)]);
    // Never with a threshold of 0: then nothing is left.
    let none = LevelLoad { percent: 100, is_panicking: false };
    assert_eq!(loads(&health(&[0]), 140, 0), [none]);
    assert_eq!(loads(&[LevelHealth { healthy: 0, all: 0 }], 140, 0), [none]);
}

#[test]
fn percentages_add_up() {
    fastrand::seed(7);
    for _ in 0..10_000 {
        let levels: Vec<_> = (0..fastrand::usize(1..6))
            .map(|_| {
                let all = fastrand::usize(..5);
                LevelHealth { healthy: fastrand::usize(..=all), all }
            })
            .collect();
        let (factor, threshold) = (fastrand::u32(100..200), fastrand::u32(..=100));
        let loads = loads(&levels, factor, threshold);
        assert_eq!(loads.iter().map(|load| load.percent).sum::<u32>(), 100, "{levels:?} {factor} {threshold}");
    }
}
