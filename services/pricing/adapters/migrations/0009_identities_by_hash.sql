-- An event is looked for by its whole identity and never by a range of them, and identities are
-- digests, so each falls on a page of its own: of what a step cost the database a half went into
-- keeping them in order.
DROP INDEX usage_event_by_identity;
CREATE INDEX usage_event_by_identity ON usage_event USING hash (identity);
