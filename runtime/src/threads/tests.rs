use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

#[test]
fn runs_every_part_once_whatever_the_number_of_threads() {
    for threads in [0, 1, 2, 5] {
        let pool = Pool::new(threads).unwrap();
        assert_eq!(pool.threads(), threads.max(1));
        for parts in [0, 1, 2, 3, 64] {
            for _ in 0..50 {
                let counts: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
                pool.run(parts, &|i| {
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
fn cuts_slices_into_pieces_that_cover_it() {
    let pool = Pool::new(3).unwrap();
    for (len, chunk_len) in [(0, 4), (1, 4), (8, 4), (9, 4), (100, 7)] {
        let mut data = vec![0usize; len];
        pool.for_each_chunk(&mut data, chunk_len, &|i, piece| {
            for (j, x) in piece.iter_mut().enumerate() {
                *x += i * chunk_len + j + 1;
            }
        });
        assert!(data.iter().enumerate().all(|(i, &x)| x == i + 1), "{len} in pieces of {chunk_len}");
    }
}

#[test]
fn wakes_workers_that_sleep() {
    let pool = Pool::new(2).unwrap();
    for _ in 0..3 {
        std::thread::sleep(SPIN * 20);
        // Both parts wait for each other, so this only ends if the worker takes one.
        let barrier = std::sync::Barrier::new(2);
        pool.run(2, &|_| {
            barrier.wait();
        });
    }
}

#[test]
fn a_second_caller_does_its_work_alone() {
    let pool = Pool::new(2).unwrap();
    let inner = AtomicUsize::new(0);
    pool.run(2, &|_| {
        pool.run(4, &|_| {
            inner.fetch_add(1, Ordering::Relaxed);
        });
    });
    assert_eq!(inner.load(Ordering::Relaxed), 8);
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
    let pool = Pool::new(2).unwrap();
    for bad in 0..4 {
        let done = AtomicUsize::new(0);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(4, &|i| {
                assert_ne!(i, bad, "on purpose");
                done.fetch_add(1, Ordering::Relaxed);
            });
        }));
        assert!(outcome.is_err(), "part {bad}");
        assert_eq!(done.load(Ordering::Relaxed), 3, "the other parts were done");
    }
    pool.run(4, &|_| ());
}
