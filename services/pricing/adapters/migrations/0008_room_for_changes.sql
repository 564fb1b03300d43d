-- Sums are changed at every step. Where a page has room for a row's next version, the row stays
-- there and no index learns of it; without room four changes of ten were so.
ALTER TABLE bill_sum SET (fillfactor = 50);
ALTER TABLE usage_minute SET (fillfactor = 50);
