-- The tables of ledger version 5, as they were written: before sealed sums and lengths.
CREATE TABLE head (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE entries (
    round INTEGER PRIMARY KEY,      -- 1, 2, 3 … without a gap
    payload BLOB NOT NULL,          -- the encoded entry: what every replica applies
    chain BLOB NOT NULL             -- sha256 of the chain before, the payload, the contributions
);
CREATE TABLE contributions (        -- who measured what: an entry can be recomputed from these
    round INTEGER NOT NULL, slot INTEGER NOT NULL, site TEXT NOT NULL,
    examples INTEGER NOT NULL,
    loss REAL,                      -- null if sites send none
    seconds REAL NOT NULL,
    differences BLOB NOT NULL,      -- float32, as the site sent them
    gradient BLOB NOT NULL,         -- SHA-256 of an encoded gradient that came with them, or empty
    PRIMARY KEY (round, slot)
) WITHOUT ROWID;
CREATE TABLE comparisons (          -- losses of one batch at two rounds' parameters: step = auto
    round INTEGER NOT NULL, slot INTEGER NOT NULL,
    before REAL,                    -- of the batch of the step that followed
    after REAL,                     -- of the batch of the step before, null if not requested
    PRIMARY KEY (round, slot)
) WITHOUT ROWID;
CREATE TABLE digests (round INTEGER PRIMARY KEY, digest BLOB NOT NULL);
CREATE TABLE refusals (
    id INTEGER PRIMARY KEY, round INTEGER NOT NULL, site TEXT NOT NULL,
    reason TEXT NOT NULL, detail TEXT NOT NULL
);
CREATE INDEX refusals_round ON refusals (round);
CREATE TABLE skips (id INTEGER PRIMARY KEY, round INTEGER NOT NULL, detail TEXT NOT NULL);
CREATE TABLE rewinds (              -- what entries of that kind say, and why
    round INTEGER PRIMARY KEY, back_to INTEGER NOT NULL, scale REAL NOT NULL, reason TEXT NOT NULL
);
CREATE TABLE traffic (
    id INTEGER PRIMARY KEY, round INTEGER NOT NULL, site TEXT NOT NULL, direction TEXT NOT NULL,
    kind TEXT NOT NULL, payload INTEGER NOT NULL, message INTEGER NOT NULL
);
CREATE INDEX traffic_round ON traffic (round);
CREATE TABLE metrics (
    round INTEGER PRIMARY KEY, timestamp TEXT NOT NULL, loss REAL,
    gradient_norm REAL NOT NULL, learning_rate REAL NOT NULL, clients INTEGER NOT NULL,
    forwards INTEGER NOT NULL, bytes_up INTEGER NOT NULL, bytes_down INTEGER NOT NULL,
    seconds REAL NOT NULL
);
CREATE TABLE sites (                -- each site, as it introduced itself last
    site TEXT PRIMARY KEY, slot INTEGER NOT NULL, device TEXT NOT NULL, dtype TEXT NOT NULL,
    threads INTEGER NOT NULL, examples INTEGER NOT NULL
);
CREATE TABLE evaluations (round INTEGER PRIMARY KEY, loss REAL NOT NULL);
CREATE TABLE scores (               -- of a task with classes: accuracy, f1, of a site also loss
    round INTEGER NOT NULL, site TEXT NOT NULL,                 -- or SERVER, or ALL_SITES
    name TEXT NOT NULL, value REAL NOT NULL,
    PRIMARY KEY (round, site, name)
) WITHOUT ROWID;
CREATE TABLE snapshots (
    round INTEGER PRIMARY KEY, file TEXT NOT NULL, bytes INTEGER NOT NULL,
    digest BLOB NOT NULL            -- XXH3-128 of the file
);
