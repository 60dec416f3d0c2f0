//! Drawing: that transformers draws the same, what a description becomes, and what is refused.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use saccade::engine::EngineOptions;
use saccade::family::Model;
use saccade::format::{Rules, read_file_header};
use saccade::sample::{Sampler, SamplerOptions};
use saccade::session::{self, Session, SessionOptions};
use saccade::tokenize::{CodedImages, DrawPrompt, Picture, Tokenizer as _, painted};
use serde_json::{Value, json};
use support::Workshop;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf")
}

/// A folder `anole`: that of Chameleon, the way back to pixels in a second file.
fn anole(shop: &Workshop) {
    let folder = shop.path("anole");
    fs::create_dir(&folder).unwrap();
    for entry in fs::read_dir(fixtures().join("chameleon")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    for name in ["decoder.safetensors", "golden.safetensors"] {
        fs::copy(fixtures().join("anole").join(name), folder.join(name)).unwrap();
    }
    let mut map = serde_json::Map::new();
    for file in ["model.safetensors", "decoder.safetensors"] {
        for tensor in read_file_header(&folder.join(file), Rules::Foreign).unwrap().tensors {
            map.insert(tensor.name.clone(), json!(file));
        }
    }
    fs::write(folder.join("model.safetensors.index.json"), json!({"weight_map": map}).to_string()).unwrap();
}

/// A bundle of a folder.
fn bundle(shop: &Workshop, folder: &str, dtype: &str) -> Arc<Model> {
    shop.succeeds(&["convert", folder, "bundle", "--dtype", dtype]);
    Model::open(shop.path("bundle"), &EngineOptions::default()).unwrap()
}

fn family(name: &str) -> String {
    fixtures().join(name).to_string_lossy().into_owned()
}

fn draw(model: &Arc<Model>, prompt: &DrawPrompt) -> Vec<u16> {
    let options = SessionOptions { max_text_tokens: prompt.tokens(), max_sequences: 2 };
    let (mut guided, mut free) =
        (Session::new(model, &options).unwrap(), Session::new(model, &options).unwrap());
    let mut codes = Vec::new();
    session::draw(&mut guided, &mut free, prompt, &mut codes, &mut |_| true).unwrap();
    codes
}

/// Ids of a golden file.
fn stored(path: &Path, name: &str) -> Vec<u32> {
    let (header, bytes) = (read_file_header(path, Rules::Foreign).unwrap(), fs::read(path).unwrap());
    let data = header.find(name).unwrap().data(&bytes).unwrap();
    data.as_chunks().0.iter().map(|&id| u32::try_from(i64::from_le_bytes(id)).unwrap()).collect()
}

#[test]
fn anole_draws_as_its_parts_in_transformers_do() {
    let shop = Workshop::new();
    anole(&shop);
    for precision in ["f32", "f16", "int8"] {
        let golden = "anole/golden.safetensors";
        let said =
            shop.succeeds(&["golden", "anole", "--golden", golden, "--precision", precision, "--json"]);
        let report: Value = serde_json::from_str(&said).unwrap();
        let [codes, pixels] = &report["tensors"].as_array().unwrap()[..] else { panic!("{report}") };
        assert_eq!((&codes["name"], &pixels["name"]), (&json!("drawn_image_tokens"), &json!("drawn_pixels")));
        let (off, most) = (pixels["max_rel"].as_f64().unwrap(), if precision == "f32" { 1e-5 } else { 3e-3 });
        assert!(off < most, "{precision}: {report}");
        assert!(precision != "f32" || codes["ids_equal"] == true, "{report}");
    }
}

#[test]
fn a_description_becomes_the_tokens_that_the_processors_make() {
    let shop = Workshop::new();
    let model = bundle(&shop, &family("emu3"), "int8");
    let golden = fixtures().join("emu3/golden.safetensors");
    let prompt =
        DrawPrompt::new(&model, "draw a small house", Some("the left chair"), Some([40, 48])).unwrap();
    assert_eq!(prompt.guided, stored(&golden, "draw_input_ids"));
    assert_eq!(prompt.free, stored(&golden, "draw_free_ids"));
    assert_eq!((prompt.grid, prompt.guidance, prompt.sampling.top_k), ([5, 6], 3.0, 2048));
    let guided_alone = DrawPrompt::of_tokens(&model, &prompt.guided, Some([40, 48])).unwrap();
    assert!(prompt.free.ends_with(&guided_alone.free[1..]), "begin of text, then the heading alone");
    let usual = DrawPrompt::new(&model, "x", None, Some([40, 48])).unwrap();
    assert!(usual.free.len() > 30, "what its makers keep it away from");

    let shop = Workshop::new();
    anole(&shop);
    let model = bundle(&shop, "anole", "int8");
    let golden = fixtures().join("anole/golden.safetensors");
    let prompt = DrawPrompt::new(&model, "draw a small house", None, None).unwrap();
    assert_eq!(prompt.guided, stored(&golden, "draw_input_ids"));
    assert_eq!(prompt.free, stored(&golden, "draw_free_ids"));
    assert_eq!((prompt.grid, prompt.guidance), ([8, 8], 3.0));

    let shop = Workshop::new();
    let model = bundle(&shop, &family("janus"), "int8");
    let golden = stored(&fixtures().join("janus/golden.safetensors"), "draw_input_ids");
    let prompt = DrawPrompt::of_tokens(&model, &golden, None).unwrap();
    assert_eq!((prompt.guided.len(), prompt.free.len()), (golden.len(), golden.len()));
    assert_eq!(prompt.free.iter().filter(|id| golden.contains(id)).count(), 2, "begins of text and picture");
}

#[test]
fn seeds_repeat_pictures_and_a_drawing_can_be_ended() {
    let shop = Workshop::new();
    anole(&shop);
    for folder in ["anole".to_owned(), family("emu3"), family("janus")] {
        let shop_of = Workshop::new();
        fs::rename(shop.path("anole"), shop_of.path("anole")).unwrap();
        let model = bundle(&shop_of, &folder, "int8");
        fs::rename(shop_of.path("anole"), shop.path("anole")).unwrap();
        let size = folder.ends_with("emu3").then_some([24, 16]);
        let mut prompt = DrawPrompt::new(&model, "a house", None, size).unwrap();
        prompt.sampling = SamplerOptions { temperature: 3.0, seed: 1, ..prompt.sampling };
        let first = draw(&model, &prompt);
        assert_eq!(first.len(), prompt.grid[0] * prompt.grid[1], "{folder}");
        assert_eq!(draw(&model, &prompt), first, "{folder}");
        prompt.sampling.seed = 2;
        assert_ne!(draw(&model, &prompt), first, "{folder}");
        let picture = painted(&model, &first, prompt.grid).unwrap();
        assert_eq!(picture.rgb.len(), picture.width * picture.height * 3);
        assert!(picture.rgb.iter().any(|&byte| byte != picture.rgb[0]), "{folder}: all bytes are alike");

        let options = SessionOptions { max_text_tokens: prompt.tokens(), max_sequences: 2 };
        let mut both = [0; 2].map(|_| Session::new(&model, &options).unwrap());
        let [guided, free] = &mut both;
        let mut codes = Vec::new();
        session::draw(guided, free, &prompt, &mut codes, &mut |n| n < 3).unwrap();
        assert_eq!(codes.len(), 3, "{folder}");
        // What was begun is forgotten: the sessions answer, and draw.
        let mut answer = Vec::new();
        let text = model.text().unwrap().encode("the house").unwrap();
        guided.answer(&text, 8, &mut Sampler::greedy(), &mut answer, &mut |_| true).unwrap();
        assert!(answer.iter().all(|id| !model.config().code_ids().contains(id)), "{folder}: {answer:?}");
        session::draw(guided, free, &prompt, &mut codes, &mut |_| true).unwrap();
        assert_eq!(codes, draw(&model, &prompt), "{folder}");
    }
}

#[test]
fn tokens_of_a_picture_become_bytes_again() {
    let shop = Workshop::new();
    anole(&shop);
    let mut images = CodedImages::new(&bundle(&shop, "anole", "f32")).unwrap();
    let (mut ids, mut rgb) = (Vec::new(), Vec::new());
    images.encode(Picture::rgb(&[90; 32 * 32 * 3], 32, 32), &mut ids).unwrap();
    images.decode(&ids, &mut rgb).unwrap();
    assert_eq!(rgb.len(), 32 * 32 * 3);
    for wrong in [&[][..], &ids[1..], &[&ids[1..], &[0]].concat()] {
        images.decode(wrong, &mut rgb).unwrap_err();
    }
}

#[test]
fn what_cannot_be_drawn_is_a_sentence() {
    let refuses = |model: &Arc<Model>, avoid: Option<&str>, size: Option<[usize; 2]>, words: &str| {
        let error = DrawPrompt::new(model, "a house", avoid, size).unwrap_err().sentence();
        assert!(error.contains(words), "`{error}` does not say `{words}`");
    };
    let shop = Workshop::new();
    refuses(&bundle(&shop, &family("chameleon"), "int8"), None, None, "no way from codes back to pixels");
    let shop = Workshop::new();
    let llama = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama/tiny.gguf");
    refuses(&bundle(&shop, &llama.to_string_lossy(), "int8"), None, None, "family llama has nothing");
    let shop = Workshop::new();
    let janus = bundle(&shop, &family("janus"), "int8");
    refuses(&janus, None, Some([64, 64]), "64 × 64 pixels cannot be drawn: this model draws");
    refuses(&janus, Some("trees"), None, "not told what shall not be seen");
    let shop = Workshop::new();
    let emu3 = bundle(&shop, &family("emu3"), "int8");
    refuses(&emu3, None, None, "the model was made for 1024");
    refuses(&emu3, None, Some([40, 41]), "both sides must be multiples of 8");
    refuses(&emu3, None, Some([0, 40]), "both sides must be multiples of 8");
    let huge = usize::MAX / 8 * 8;
    refuses(&emu3, None, Some([huge, huge]), "the model was made for 1024");
}
