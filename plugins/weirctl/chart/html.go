package chart

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"io"

	"github.com/weir-net/weir/policy/reach"
)

var (
	//go:embed page.html
	page []byte
	//go:embed page.css
	pageStyle []byte
	//go:embed page.js
	pageScript []byte
)

// pageRow is a row of the matrix. From and To are indexes into pageData.Parties. Ports is an index into pageData.Ports.
type pageRow struct {
	From   []int  `json:"f"`
	To     []int  `json:"t"`
	Ports  int    `json:"p"`
	Family string `json:"v,omitempty"`
}

type pageRule struct {
	Policy   string `json:"policy"`
	Field    string `json:"field"`
	Subjects []int  `json:"subjects"`
	Peers    []int  `json:"peers"`
	Words    string `json:"words"`
}

type pagePorts struct {
	reach.Ports
	Words string `json:"words"`
}

type pageData struct {
	Title    string        `json:"title"`
	Parties  []reach.Party `json:"parties"`
	Ports    []pagePorts   `json:"ports"`
	Rows     []pageRow     `json:"rows"`
	Rules    []pageRule    `json:"rules"`
	Policies []string      `json:"policies"`
	Notes    []string      `json:"notes"`
}

// HTML prints a page for browsers: the matrix, the connections and a graph of the policies. The page loads nothing.
// Its Content-Security-Policy allows no script but the page's own, which shows objects' data as text.
func HTML(out io.Writer, v View) error {
	d := pageData{
		Title: v.Title, Parties: v.Parties, Ports: []pagePorts{}, Rows: []pageRow{}, Rules: []pageRule{},
		Policies: v.Policies, Notes: v.Notes,
	}
	number := map[string]int{}
	for _, r := range v.Rows {
		key := fmt.Sprint(r.Ports)
		n, ok := number[key]
		if !ok {
			n = len(d.Ports)
			number[key] = n
			d.Ports = append(d.Ports, pagePorts{r.Ports, r.Ports.String()})
		}
		d.Rows = append(d.Rows, pageRow{r.From, r.To, n, r.Family})
	}
	for _, r := range v.Rules() {
		d.Rules = append(d.Rules, pageRule{r.Policy, r.Field, r.Subjects, r.Peers, r.Ports.String()})
	}
	data, err := printable(d)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(pageScript)
	text := page
	for _, part := range []struct {
		mark string
		with []byte
	}{
		{"{{title}}", []byte(html.EscapeString(OneLine(v.Title)))},
		{"{{hash}}", []byte(base64.StdEncoding.EncodeToString(sum[:]))},
		{"{{style}}", pageStyle},
		{"{{script}}", pageScript},
		{"{{data}}", data},
	} {
		before, after, ok := bytes.Cut(text, []byte(part.mark))
		if !ok {
			return fmt.Errorf("the page has no %s", part.mark)
		}
		if _, err := out.Write(before); err != nil {
			return err
		}
		if _, err := out.Write(part.with); err != nil {
			return err
		}
		text = after
	}
	_, err = out.Write(text)
	return err
}

// printable returns JSON with only printable characters. Marshal escapes <, > and &, so no text of an object can end
// the page's script element.
func printable(value any) ([]byte, error) {
	raw, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	var tree any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&tree); err != nil {
		return nil, err
	}
	return json.Marshal(clean(tree))
}

func clean(value any) any {
	switch v := value.(type) {
	case string:
		return OneLine(v)
	case []any:
		for i := range v {
			v[i] = clean(v[i])
		}
	case map[string]any:
		cleaned := make(map[string]any, len(v))
		for key, of := range v {
			cleaned[OneLine(key)] = clean(of)
		}
		return cleaned
	}
	return value
}
