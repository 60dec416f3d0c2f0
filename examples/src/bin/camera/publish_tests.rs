//! What a line holds, and that the loop never waits for a slow publisher.

use std::sync::mpsc::sync_channel;
use std::time::Duration;

use saccade::session::ActionChunk;

use super::*;
use crate::run::Timings;

#[test]
fn a_line_has_exactly_the_fields_that_scripts_rely_on() {
    let seen = Seen {
        codes: vec![3, 1023],
        action: ActionChunk { bins: vec![0; 4], values: vec![0.25, -1.0, 0.1234567, 1.0] },
        timings: Timings { tokenize: Duration::from_micros(1500), ..Timings::default() },
        age: Duration::from_millis(12),
        dropped: 7,
        ..Seen::default()
    };
    let line = line(&seen, "a \"door\"", 2);
    let keys: Vec<&String> = line.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["seq", "capture_ns", "age_ms", "text", "action", "codes", "timings_ms", "dropped"]);
    let stages: Vec<&String> = line["timings_ms"].as_object().unwrap().keys().collect();
    assert_eq!(stages, ["decode", "tokenize", "prefill", "generate"]);
    assert_eq!(line["action"], json!([[0.25, -1.0], [0.123, 1.0]]));
    assert_eq!((&line["codes"], &line["dropped"]), (&json!([3, 1023]), &json!(7)));
    assert_eq!((&line["age_ms"], &line["timings_ms"]["tokenize"]), (&json!(12.0), &json!(1.5)));
    assert!(!line.to_string().contains('\n'));
}

fn outlet(every_frame: bool) -> (Outlet, Receiver<Seen>, SyncSender<Seen>) {
    let (to, records) = sync_channel(RECORDS);
    let (give_back, back) = sync_channel(RECORDS);
    for _ in 0..RECORDS {
        give_back.try_send(Seen::default()).unwrap();
    }
    (Outlet { to, back, every_frame, latest: Arc::default() }, records, give_back)
}

#[test]
fn a_slow_publisher_costs_frames_and_no_time() {
    let (mut outlet, records, give_back) = outlet(false);
    let mut seen = outlet.first();
    for dropped in 0..10 {
        seen.dropped = dropped;
        assert_eq!(outlet.publish(&mut seen), dropped < RECORDS as u64 - 1, "frame {dropped}");
    }
    let first = records.recv().unwrap();
    assert_eq!(first.dropped, 0);
    give_back.try_send(first).unwrap();
    seen.dropped = 99;
    assert!(outlet.publish(&mut seen), "a record came back");
    assert_eq!(records.try_iter().map(|seen| seen.dropped).collect::<Vec<_>>(), [1, 2, 99]);
}

#[test]
fn with_every_frame_the_loop_waits_and_loses_none() {
    let (mut outlet, records, give_back) = outlet(true);
    let reader = thread::spawn(move || {
        records
            .iter()
            .inspect(|_| thread::sleep(Duration::from_millis(1)))
            .map(|seen| {
                let number = seen.dropped;
                let _ = give_back.try_send(seen);
                number
            })
            .collect::<Vec<_>>()
    });
    let mut seen = outlet.first();
    for number in 0..50 {
        seen.dropped = number;
        assert!(outlet.publish(&mut seen));
    }
    drop(outlet);
    assert_eq!(reader.join().unwrap(), (0..50).collect::<Vec<_>>());
}

#[test]
fn a_dead_publisher_does_not_stop_the_loop() {
    let (mut outlet, records, _give_back) = outlet(false);
    drop(records);
    let mut seen = outlet.first();
    assert!(!outlet.publish(&mut seen));
}
