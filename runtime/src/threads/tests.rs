use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

#[test]
fn runs_every_part_once_whatever_the_number_of_threads() {
    for threads in [0, 1, 2, 5] {
        let pool = Pool::new(threads, Idle::default()).unwrap();
        assert_eq!(pool.threads(), threads.max(1));
        for parts in [0, 1, 2, 3, 64] {
            for _ in 0..50 {
                let counts: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
                pool.run(parts, &|thread, i| {
                    assert!(thread < pool.threads());
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    counts.iter().all(|n| n.load(Ordering::Relaxed) == 1),
                    "{threads} threads, {parts} parts"
                );
            }
        }
    }
}

#[test]
fn cuts_slices_into_pieces_that_cover_them() {
    let pool = Pool::new(3, Idle::default()).unwrap();
    for (len, piece) in [(0, 4), (1, 4), (8, 4), (9, 4), (100, 7)] {
        let (mut a, mut b) = (vec![0usize; len], vec![0usize; 2 * len]);
        let mut counts = vec![0usize; 3];
        pool.for_each_piece((&mut a, piece), (&mut b, 2 * piece), &mut counts, &|i, a, b, count| {
            a.iter_mut().enumerate().for_each(|(j, x)| *x += i * piece + j + 1);
            b.iter_mut().enumerate().for_each(|(j, x)| *x += 2 * i * piece + j + 1);
            *count += 1;
        });
        assert!(a.iter().enumerate().all(|(i, &x)| x == i + 1), "{len} in pieces of {piece}");
        assert!(b.iter().enumerate().all(|(i, &x)| x == i + 1), "{len} in pieces of {piece}");
        assert_eq!(counts.iter().sum::<usize>(), len.div_ceil(piece), "each piece counted with one scratch");
    }
}

#[test]
fn cuts_matrices_into_columns_that_cover_them() {
    let pool = Pool::new(3, Idle::default()).unwrap();
    for (rows, widths, piece) in
        [(0, [5, 0], 2), (1, [1, 1], 1), (3, [7, 2], 3), (4, [6, 6], 4), (2, [5, 1], 9), (2, [0, 8], 3)]
    {
        let mut outs = widths.map(|width| vec![0usize; rows * width]);
        let (mut counts, [a, b]) = (vec![0usize; 3], &mut outs);
        let matrices = [(&mut a[..], widths[0]), (&mut b[..], widths[1])];
        pool.for_each_columns(matrices, rows, piece, &mut counts, &|n, columns, mut part, count| {
            assert_eq!((part.rows(), part.width()), (rows, columns.len()));
            for i in 0..rows {
                for (x, column) in part.part(0..columns.len()).row(i).iter_mut().zip(columns.clone()) {
                    *x += i * widths[n] + column + 1;
                }
            }
            *count += columns.len();
        });
        for out in &outs {
            assert!(
                out.iter().enumerate().all(|(i, &x)| x == i + 1),
                "{rows} × {widths:?} in pieces of {piece}"
            );
        }
        assert_eq!(counts.iter().sum::<usize>(), widths.iter().sum::<usize>(), "each piece has a scratch");
    }
    let (mut out, mut columns) = ([0, 1, 2, 3, 4, 5], Vec::new());
    let mut whole = Columns::of(&mut out, 2, 3);
    (0..2).for_each(|i| columns.extend_from_slice(whole.part(1..3).row(i)));
    assert_eq!(columns, [1, 2, 4, 5]);
    assert!(catch_unwind(AssertUnwindSafe(|| whole.part(2..4).width())).is_err(), "there are three columns");
    let mut out = [0; 6];
    let outcome = catch_unwind(AssertUnwindSafe(|| Columns::of(&mut out, 2, 3).row(2).fill(1)));
    assert!(outcome.is_err(), "there are two rows");
}

#[test]
fn wakes_workers_that_sleep() {
    let pool = Pool::new(2, Idle::default()).unwrap();
    for _ in 0..3 {
        std::thread::sleep(Idle::default().spin * 20);
        // Both parts wait for each other, so this only ends if the worker takes one.
        let barrier = std::sync::Barrier::new(2);
        pool.run(2, &|_, _| {
            barrier.wait();
        });
    }
}

#[test]
fn a_second_caller_does_its_work_alone() {
    let pool = Pool::new(2, Idle::default()).unwrap();
    let inner = AtomicUsize::new(0);
    pool.run(2, &|_, _| {
        pool.run(4, &|_, _| {
            inner.fetch_add(1, Ordering::Relaxed);
        });
    });
    assert_eq!(inner.load(Ordering::Relaxed), 8);
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
    let pool = Pool::new(2, Idle::default()).unwrap();
    for bad in 0..4 {
        let done = AtomicUsize::new(0);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(4, &|_, i| {
                assert_ne!(i, bad, "on purpose");
                done.fetch_add(1, Ordering::Relaxed);
            });
        }));
        assert!(outcome.is_err(), "part {bad}");
        assert_eq!(done.load(Ordering::Relaxed), 3, "the other parts were done");
    }
    pool.run(4, &|_, _| ());
}
