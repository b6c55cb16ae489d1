// Renders chats as Ollama does: Go's text/template, with the functions and variables of its template package.
// Usage: go run ollama.go < cases.json: [{"template": …, "chats": [[{"role": …, "content": …}]]}] → [[text]]
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"text/template"
	"time"
)

type message struct{ Role, Content string }

// The functions of ollama/template.
var funcs = template.FuncMap{
	"json": func(v any) string {
		b, _ := json.Marshal(v)
		return string(b)
	},
	"currentDate": func(args ...string) string { return time.Now().Format("2006-01-02") },
}

// collate of ollama/template: neighbors of one role are one message, and system messages are also apart.
func collate(all []message) (string, []*message) {
	var system []string
	var collated []*message
	for i := range all {
		if all[i].Role == "system" {
			system = append(system, all[i].Content)
		}
		if n := len(collated); n > 0 && collated[n-1].Role == all[i].Role {
			collated[n-1].Content += "\n\n" + all[i].Content
		} else {
			collated = append(collated, &all[i])
		}
	}
	return strings.Join(system, "\n\n"), collated
}

func main() {
	var cases []struct {
		Template string
		Chats    [][]message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	results := [][]string{}
	for _, one := range cases {
		parsed := template.Must(template.New("").Option("missingkey=zero").Funcs(funcs).Parse(one.Template))
		texts := []string{}
		for _, chat := range one.Chats {
			system, messages := collate(chat)
			var out bytes.Buffer
			if err := parsed.Execute(&out, map[string]any{"System": system, "Messages": messages, "Tools": nil, "Response": ""}); err != nil {
				panic(err)
			}
			texts = append(texts, out.String())
		}
		results = append(results, texts)
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	encoder.Encode(results)
}
