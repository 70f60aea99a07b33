//! Are weights that others quantized put together as their forms say, and refused by name where
//! they do not fit? What they mean in a model is compared in `testkit`.

#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value as Json, json};
use weights::WeightFile;

/// A tensor of a file: name, dtype, shape. Its bytes follow from its name and place.
type Tensor = (String, &'static str, Vec<u64>);

struct Form {
    name: &'static str,
    settings: Json,
    tensors: Vec<Tensor>,
    /// The tensor of the model, its rows and columns.
    expected: (&'static str, usize, usize),
}

const PATH: &str = "model.layers.0.mlp.up_proj";

/// A tensor by the end of its name.
type Described<'a> = (&'a str, &'static str, &'a [u64]);

fn under(path: &str, parts: &[Described<'_>]) -> Vec<Tensor> {
    let tensor =
        |(end, dtype, shape): &Described<'_>| (format!("{path}{end}"), *dtype, shape.to_vec());
    parts.iter().map(tensor).collect()
}

fn forms() -> Vec<Form> {
    let up = ("blk.0.ffn_up.weight", 32, 64);
    let words = |parts: &[Described<'_>]| under(PATH, parts);
    vec![
        Form {
            name: "gptq",
            settings: json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": false}),
            tensors: words(&[
                (".qweight", "I32", &[8, 32]),
                (".qzeros", "I32", &[2, 4]),
                (".scales", "F16", &[2, 32]),
                (".g_idx", "I32", &[64]),
            ]),
            expected: up,
        },
        Form {
            name: "awq",
            settings: json!({"quant_method": "awq", "bits": 4, "group_size": 32}),
            tensors: words(&[
                (".qweight", "I32", &[64, 4]),
                (".qzeros", "I32", &[2, 4]),
                (".scales", "F16", &[2, 32]),
            ]),
            expected: up,
        },
        Form {
            name: "packed",
            settings: json!({"quant_method": "compressed-tensors", "format": "pack-quantized"}),
            tensors: words(&[
                (".weight_packed", "I32", &[32, 8]),
                (".weight_scale", "BF16", &[32, 2]),
                (".weight_zero_point", "I32", &[4, 2]),
                (".weight_shape", "I64", &[2]),
            ]),
            expected: up,
        },
        Form {
            name: "int8",
            settings: json!({"quant_method": "compressed-tensors", "format": "int-quantized"}),
            tensors: words(&[(".weight", "I8", &[32, 64]), (".weight_scale", "BF16", &[32, 1])]),
            expected: up,
        },
        Form {
            name: "fp8",
            settings: json!({"quant_method": "fp8", "weight_block_size": [16, 64]}),
            tensors: words(&[
                (".weight", "F8_E4M3", &[32, 64]),
                (".weight_scale_inv", "F32", &[2, 1]),
            ]),
            expected: up,
        },
        Form {
            name: "gpt_oss",
            settings: json!({"quant_method": "mxfp4"}),
            tensors: under(
                "model.layers.0.mlp.experts.gate_up_proj",
                &[
                    ("_blocks", "U8", &[2, 4, 2, 16]),
                    ("_scales", "U8", &[2, 4, 2]),
                    ("_bias", "BF16", &[2, 4]),
                ],
            ),
            expected: ("blk.0.ffn_up_exps.weight", 4, 64),
        },
    ]
}

fn width(dtype: &str) -> u64 {
    match dtype {
        "I64" => 8,
        "I32" | "F32" => 4,
        "F16" | "BF16" => 2,
        _ => 1,
    }
}

/// The bytes of a file; numbers of `weight_shape` are those of the matrix.
fn file(tensors: &[Tensor]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape) in tensors {
        let start = data.len();
        let bytes = shape.iter().product::<u64>() * width(dtype);
        if name.ends_with("weight_shape") {
            data.extend([32u64, 64].iter().flat_map(|dim| dim.to_le_bytes()));
            data.resize(start + bytes as usize, 0);
        } else if name.ends_with("g_idx") {
            data.extend((0..bytes as u32 / 4).flat_map(|column| (column / 32).to_le_bytes()));
        } else {
            // Scales of about 1 in each type of float.
            let byte = |at: u64| if dtype.contains('F') { 0x3c } else { (37 * at) as u8 };
            data.extend((0..bytes).map(byte));
        }
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    let header = Json::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn opened(settings: &Json, tensors: &[Tensor]) -> Result<(WeightFile, Vec<f32>), String> {
    let config = json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16,
        "rms_norm_eps": 1e-5, "quantization_config": settings,
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), file(tensors)).unwrap();
    let model = weights::open(folder.path()).map_err(|error| error.to_string())?;
    let mut all = Vec::new();
    for info in model.tensors() {
        let view = model.tensor(info.name()).map_err(|error| error.to_string())?;
        let mut row = vec![0.0; view.cols];
        for index in 0..view.rows {
            view.format.decode_row(view.row(index), &mut row);
            all.extend_from_slice(&row);
        }
    }
    Ok((model, all))
}

#[test]
fn each_form_is_put_together() {
    for Form { name, settings, tensors, expected } in forms() {
        let (model, _) = opened(&settings, &tensors).unwrap();
        let shape = model.shape(expected.0).unwrap();
        assert_eq!((shape.rows, shape.cols), (expected.1, expected.2), "{name}");
        assert!(!shape.is_stored, "{name}");
    }
}

#[test]
fn columns_in_another_order_become_floats() {
    let form = forms().remove(0);
    let healthy = opened(&form.settings, &form.tensors).unwrap().1;
    let mut bytes = file(&form.tensors);
    // The last tensor of the file: groups of 64 columns, the last one moved to the first group.
    let at = bytes.len() - 4;
    bytes[at..].fill(0);
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16,
        "rms_norm_eps": 1e-5, "quantization_config": form.settings,
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    let model = weights::open(folder.path()).unwrap();
    let view = model.tensor("blk.0.ffn_up.weight").unwrap();
    assert_eq!(view.format.name(), "F16");
    let mut row = vec![0.0; 64];
    view.format.decode_row(view.row(5), &mut row);
    let rounded = |value: &f32| half::f16::from_f32(*value).to_f32();
    let stayed: Vec<f32> = healthy[5 * 64..5 * 64 + 63].iter().map(rounded).collect();
    assert_eq!(row[..63], stayed, "columns that stayed");
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let shapes: [&[u64]; 7] = [&[], &[1], &[0, 4], &[32, 64], &[33, 8], &[8, 31, 2], &[4, 4, 2, 3]];
    for Form { name, settings, tensors, .. } in forms() {
        for at in 0..tensors.len() {
            let mut missing = tensors.clone();
            let (gone, ..) = missing.remove(at);
            // A bias may be missing here (its family misses it), so may what has a default.
            let may_be_missing = ["g_idx", "zero_point", "_bias"];
            let is_needed = !may_be_missing.iter().any(|end| gone.ends_with(end));
            let result = opened(&settings, &missing);
            let names_nothing = result.as_ref().is_ok_and(|(model, _)| {
                model.tensors().all(|info| info.name().starts_with("model."))
            });
            assert!(result.is_err() == is_needed || names_nothing, "{name} without {gone}");
            for shape in shapes {
                for dtype in ["I32", "F32", "U8", "I64", "F8_E4M3"] {
                    let mut changed = tensors.clone();
                    changed[at].1 = dtype;
                    changed[at].2 = shape.to_vec();
                    if let Err(error) = opened(&settings, &changed) {
                        assert!(error.contains("model.layers.0"), "{name}: {error}");
                    }
                }
            }
        }
    }
}

#[test]
fn settings_that_are_not_read_are_named() {
    let cases = [
        (json!({"quant_method": "bitsandbytes"}), "quant_method is \"bitsandbytes\""),
        (json!({"quant_method": "gptq", "bits": 5}), "bits is 5"),
        (json!({"quant_method": "gptq"}), "bits is missing"),
        (json!({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}), "marlin"),
        (json!({"quant_method": "awq", "version": "gemv"}), "version is gemv"),
        (json!({"quant_method": "fp8", "weight_block_size": [0, 1]}), "weight_block_size"),
        (
            json!({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}),
            "format is nvfp4-pack-quantized",
        ),
    ];
    for (settings, expected) in cases {
        let error = opened(&settings, &[]).err().unwrap();
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(error.contains("config.json"), "{error}");
    }
}

#[test]
fn settings_that_lie_about_zero_are_refused() {
    let mut form = forms().remove(0);
    form.settings["sym"] = json!(true);
    let error = opened(&form.settings, &form.tensors).err().unwrap();
    assert!(error.contains("means zero here") && error.contains("sym"), "{error}");
}
