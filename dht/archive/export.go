package archive

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"

	"github.com/parquet-go/parquet-go"
)

// Formats of Export.
const (
	// FormatCSV is RFC 4180 with a head line; absent is empty.
	FormatCSV = "csv"
	// FormatParquet has the same columns; absent is null.
	FormatParquet = "parquet"
	// FormatNDJSON is an object a line; absent is left out.
	FormatNDJSON = "ndjson"
	// FormatHTML is one self-contained page of plots.
	FormatHTML = "html"
)

// ErrFormat means a format that Export does not write.
var ErrFormat = errors.New("archive: unknown format; want csv, parquet, ndjson or html")

// Export writes a row for each group of GPUs, or for html a page about them. The same files give the same bytes.
func (a *Archive) Export(w io.Writer, format string, all bool) error {
	var err error
	switch format {
	case FormatCSV:
		err = writeCSV(w, a.rows(all))
	case FormatParquet:
		err = writeParquet(w, a.rows(all))
	case FormatNDJSON:
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		for _, r := range a.rows(all) {
			if err = enc.Encode(&r); err != nil {
				break
			}
		}
	case FormatHTML:
		err = a.writeHTML(w)
	default:
		return fmt.Errorf("%w: %.20q", ErrFormat, format)
	}
	if err != nil {
		return fmt.Errorf("exporting as %s: %w", format, err)
	}
	return nil
}

// Columns are the names of the exported columns, in their order.
func Columns() []string {
	t := reflect.TypeFor[flatRow]()
	out := make([]string, t.NumField())
	for i := range out {
		out[i] = columnOf(t.Field(i))
	}
	return out
}

func columnOf(f reflect.StructField) string {
	name := f.Tag.Get("parquet")
	for i := range name {
		if name[i] == ',' {
			return name[:i]
		}
	}
	return name
}

func writeCSV(w io.Writer, rows []flatRow) error {
	out := csv.NewWriter(w)
	out.UseCRLF = true // RFC 4180
	if err := out.Write(Columns()); err != nil {
		return err
	}
	cells := make([]string, len(Columns()))
	for i := range rows {
		v := reflect.ValueOf(&rows[i]).Elem()
		for c := range cells {
			cells[c] = cell(v.Field(c))
		}
		if err := out.Write(cells); err != nil {
			return err
		}
	}
	out.Flush()
	return out.Error()
}

// cell writes a value as CSV has it; absent is empty.
func cell(v reflect.Value) string {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return ""
		}
		v = v.Elem()
	}
	switch v.Kind() {
	case reflect.String:
		return v.String()
	case reflect.Bool:
		return strconv.FormatBool(v.Bool())
	case reflect.Int64:
		return strconv.FormatInt(v.Int(), 10)
	case reflect.Uint32, reflect.Uint64:
		return strconv.FormatUint(v.Uint(), 10)
	default: // float64, the only other kind that there is
		return strconv.FormatFloat(v.Float(), 'f', -1, 64)
	}
}

func writeParquet(w io.Writer, rows []flatRow) error {
	out := parquet.NewGenericWriter[flatRow](w, parquet.Compression(&parquet.Zstd),
		parquet.CreatedBy("gridbeam", Version, ""), // not the build's: the same rows have to give the same bytes
		parquet.KeyValueMetadata("schema", Version))
	if _, err := out.Write(rows); err != nil {
		return errors.Join(err, out.Close())
	}
	return out.Close()
}
