use super::*;

fn dims() -> Dims {
    Dims::tiny()
}

fn codes(seed: u16) -> Vec<u16> {
    (0..64).map(|i| (i * 7 + seed) % 32).collect()
}

/// The mask as sets of visible keys, without ghosts beyond `s`'s own.
fn seen(s: &Sequence) -> Vec<Vec<usize>> {
    let shifts = s.shifts();
    let keys = s.len() + shifts.len() * s.s0_len();
    let mut mask = vec![-1.0; s.len() * keys];
    s.unmask(&mut mask, keys, s.len(), s.s0_len(), &shifts);
    mask.chunks_exact(keys).map(|row| (0..keys).filter(|&k| row[k] == 0.0).collect()).collect()
}

#[test]
fn image_is_causal_and_predicts_its_next_code() {
    let mut s = Sequence::open(&dims(), Task::Vqa, &[]);
    s.image(&dims(), &codes(0));
    assert_eq!(s.len(), 4 + 66);
    let rows = seen(&s);
    assert_eq!(rows[0], [0]);
    assert_eq!(rows[10], (0..=10).collect::<Vec<_>>());
    let first = s.targets[0];
    assert_eq!((first.at, first.id, first.head), (4, 336 + u32::from(codes(0)[0]), Head::Image));
    assert_eq!(s.targets.len(), 64);
    assert_eq!(s.targets[63].at, 4 + 63, "code 62 predicts code 63, and nothing follows that");
    assert_eq!((s.raster[4], s.raster[5], s.raster[68], s.raster[69]), (NO_RASTER, 0, 63, NO_RASTER));
}

#[test]
fn question_sees_the_trunk_and_leaves_nothing_behind() {
    let mut s = Sequence::open(&dims(), Task::Robot, &[70]);
    s.image(&dims(), &codes(1));
    s.ask(&[80, 81], &[90]);
    s.ask(&[82], &[91, 92]);
    s.bins(Modality::Action, &[325]);
    // 5 of segment 0, 66 of the image; the first branch is <ask> 80 81 <ans> 90, the second <ask> 82 <ans> 91 92.
    let (first, second, action) = (71, 76, 81);
    let rows = seen(&s);
    assert_eq!(rows[first + 1], (0..=first + 1).collect::<Vec<_>>());
    let expected: Vec<usize> = (0..71).chain(second..=second + 3).collect();
    assert_eq!(rows[second + 3], expected, "the second branch does not see the first");
    let expected: Vec<usize> = (0..71).chain(action..=action + 1).collect();
    assert_eq!(rows[action + 1], expected, "the trunk sees no branch");
    assert_eq!((s.pos[first], s.pos[second], s.pos[action]), (71, 71, 71));
    let text: Vec<(usize, u32)> =
        s.targets.iter().filter(|t| t.head == Head::Text).map(|t| (t.at, t.id)).collect();
    assert_eq!(text, [(74, 90), (75, ids::EOS), (78, 91), (79, 92), (80, ids::EOS)]);
}

#[test]
fn slots_see_the_trunk_and_only_themselves() {
    let mut s = Sequence::open(&dims(), Task::Robot, &[]);
    s.image(&dims(), &codes(2));
    s.slots(&[322; 32]).unwrap();
    let rows = seen(&s);
    let expected: Vec<usize> = (0..70).chain([75]).collect();
    assert_eq!(rows[75], expected);
    assert_eq!((s.pos[70], s.pos[75]), (70, 75), "slot i has offset i");
    assert!(s.slots(&[322; 31]).is_err());
}

#[test]
fn fifth_image_evicts_the_first_and_closes_the_gap() {
    let mut s = Sequence::open(&dims(), Task::Robot, &[65, 66]);
    for step in 0..5 {
        s.image(&dims(), &codes(step));
        s.bins(Modality::State, &[320, 321, 322, 323]);
        s.bins(Modality::Action, &[320; 16]);
    }
    // Segment 0 has 6 tokens; a step is 66 + 5 + 17 = 88.
    let image = 6 + 4 * 88;
    assert_eq!(s.shifts(), [66, 66 + 5, 66 + 5 + 17]);
    let closed = s.closed_positions();
    assert_eq!(closed[image] as usize, 6 + 4 * 88 - 66);
    assert_eq!(
        closed[image + 66] as usize,
        6 + 4 * 88 - 66 + 66 - 5,
        "the state is pushed after the first state went"
    );
    let rows = seen(&s);
    // Ghost keys: copies of segment 0 for the shifts 66, 71 and 88 follow the tokens.
    let ghosts = s.len();
    let query = image + 1;
    let old_state_and_action = 6 + 66..6 + 88;
    let expected: Vec<usize> = old_state_and_action.chain(6 + 88..=query).chain(ghosts..ghosts + 6).collect();
    assert_eq!(rows[query], expected);
    let state = image + 66;
    let expected: Vec<usize> =
        (6 + 66 + 5..6 + 88).chain(6 + 88..=state).chain(ghosts + 6..ghosts + 12).collect();
    assert_eq!(rows[state], expected);
}

#[test]
fn bins_clamp_and_come_back_within_half_a_bin() {
    let b = Binning { low: vec![-1.0], high: vec![1.0] };
    assert_eq!(
        [-9.0, -1.0, -0.001, 0.0, 0.999, 1.0, f32::NAN].map(|v| b.bin(0, v, 256)),
        [0, 0, 127, 128, 255, 255, 0]
    );
    for v in [-0.99, -0.3, 0.0, 0.77] {
        assert!((b.centre(0, b.bin(0, v, 256), 256) - v).abs() <= 1.0 / 256.0 + 1e-6);
    }
    let flat = Binning::fitted(&vec![vec![3.0]; 10], 1);
    assert_eq!((flat.low[0], flat.high[0]), (2.5, 3.5), "a constant gets a range of one");
}
