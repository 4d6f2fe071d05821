-- What one call looks at or moves, at most: some milliseconds of the server. Who has more comes again.
local MOST, MOST_BYTES = 500, 524288
