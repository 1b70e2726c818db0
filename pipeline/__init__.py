"""The batch pipeline: recordings to a feature store, a report, and the command line over all stages.

- `run`: the command line, `python -m pipeline.run`
- `preparation`: from the options of a command to its run
- `options`: the options that all stages share
- `stages`: what each stage skips, calls and records
- `scan_stage`: the same for scan
- `model_stages`: the same for training, evaluation and promotion
- `run_context`: what every stage of a run gets
- `run_record`: run.json, the record of what each stage did
- `run_lock`: one run at a time in an output folder
- `lease`: the lock of an output folder at a URL
- `run_config`: all settings of a run
- `config`: the settings that decide a store's bytes
- `outputs`: where each file lies below an output folder
- `schema`: names, types and codes shared by all packages
- `storage`: paths and URLs, states and digests of files, and reading JSON and tables
- `durable_files`: writing files that readers see whole or not at all, and that survive a power cut
- `object_stores`: S3, Google and Azure: packages, settings, errors
- `digests`: digests of values and tables
- `sorted_arrays`: sets of numbers as sorted arrays
- `yaml_file`: YAML that people write
- `settings`: the base of all classes of settings
- `kinds`: settings whose class is named by their key `kind`
- `errors`: errors that a user can fix
- `interrupts`: Ctrl-C, SIGTERM and SIGHUP
- `environment`: standard streams, the working folder, the encoding of file names
"""
